"""The real parser of every command on the page: its words are given to it, and nothing else of the command runs.

A recipe's or a room's own ``main`` builds its parser and hands the words over; there it is stopped. So whatever a
parser refuses is refused here: an option or a value that it does not know, a word too many, one that is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.readme.commands import REPO, Command

# Options of programs that the kit does not install: as their documentation has them.
FOREIGN = {"vllm": ("serve", {"--port", "--host", "--limit-mm-per-prompt", "--max-model-len", "--served-model-name"})}


class Wrong(Exception):
    """A command that its parser refuses, in one line."""


def check(command: Command, words: list[str] | None = None) -> None:
    """Give a command to its parser.

    Args:
        command: if it is not ``whole``, its options have to exist and no more.
        words: typed in place of its own.

    Raises:
        Wrong: the parser refuses it.
    """
    words = command.words if words is None else words
    _PROGRAMS[Path(words[0]).name](words[1:], command.whole)


def _make(words: list[str], whole: bool) -> None:
    text = (REPO / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()
    variables = re.findall(r"^(\w+) \?=", text, re.MULTILINE)
    for word in words:
        if word.partition("=")[0] not in (variables if "=" in word else targets):
            raise Wrong(f"the Makefile has no {word}")


def _python(words: list[str], whole: bool) -> None:
    if words[:1] != ["-m"]:
        _script(words, whole)
    elif words[1:] != ["venv", ".venv"]:  # the interpreter's own
        _module(words[1], words[2:], whole)


def _script(words: list[str], whole: bool) -> None:
    if not words or not (REPO / words[0]).is_file():
        raise Wrong(f"there is no script {words[:1]}")
    _module(words[0].removesuffix(".py").replace("/", "."), words[1:], whole)


def _accelerate(words: list[str], whole: bool) -> None:
    from accelerate.commands.launch import launch_command_parser

    if words[0] != "launch":
        raise Wrong(f"accelerate {words[0]} is not known to these tests")
    found = _argparse(launch_command_parser(), words[1:], whole=True)
    if found.config_file:
        from accelerate.commands.config.config_args import load_config_from_file

        try:
            load_config_from_file(str(REPO / found.config_file))  # refuses unknown keys
        except (OSError, ValueError) as error:
            raise Wrong(f"{found.config_file}: {error}") from None
    inner = [found.training_script, *found.training_script_args]
    _module(inner[0], inner[1:], whole) if found.module else _script(inner, whole)


def _torchrun(words: list[str], whole: bool) -> None:
    from torch.distributed.run import get_args_parser

    found = _argparse(get_args_parser(), words, whole=True)
    _script([found.training_script, *found.training_script_args], whole)


def _pip(words: list[str], whole: bool) -> None:
    extra = re.fullmatch(r"\.\[([\w,]+)\]", words[-1])
    config = ConfigParser()
    config.read(REPO / "setup.cfg", encoding="utf-8")
    known = config["options.extras_require"]
    if words[:-1] != ["install", "-e"] or extra is None or not all(name in known for name in extra[1].split(",")):
        raise Wrong(f"pip {' '.join(words)}: no extra of setup.cfg")


def _hf(words: list[str], whole: bool) -> None:
    from huggingface_hub.cli.hf import app

    _click(app, words)


def _lighteval(words: list[str], whole: bool) -> None:
    from lighteval.__main__ import app

    _click(app, words)


def _foreign(words: list[str], whole: bool) -> None:
    verb, options = FOREIGN["vllm"]
    if words[0] != verb or (unknown := {w.partition("=")[0] for w in words if w.startswith("-")} - options):
        raise Wrong(f"vllm {words[0]}: not among the options that were looked up: {sorted(unknown)}")


_PROGRAMS: dict[str, Callable[[list[str], bool], None]] = {
    "make": _make,
    "python": _python,
    "accelerate": _accelerate,
    "torchrun": _torchrun,
    "pip": _pip,
    "hf": _hf,
    "lighteval": _lighteval,
    "vllm": _foreign,
}


def _module(name: str, words: list[str], whole: bool) -> None:
    """The parser of one of our own modules."""
    if name.partition(".")[0] not in ("dataset_builder", "eval", "recipes", "cards", "benchmarks"):
        raise Wrong(f"python -m {name} is not known to these tests")
    try:
        spec = importlib.util.find_spec(name)
        spec = importlib.util.find_spec(f"{name}.__main__") if spec and spec.submodule_search_locations else spec
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        raise Wrong(f"there is no module {name}")
    if name == "cards" and words[:1] == ["finish"]:
        return _finish(words, whole)
    if name == "eval":
        from eval.__main__ import COMMANDS
        from eval.launcher import WORDS

        if not words:
            return  # prints what there is
        if words[0] in WORDS:
            return _lighteval(words, whole)
        if words[0] not in COMMANDS:
            raise Wrong(f"python -m eval has no command {words[0]}")
        found, given = parser_of(COMMANDS[words[0]], tuple(words[1:]), "run")
    elif name.startswith("benchmarks") and "argparse" not in Path(spec.origin).read_text(encoding="utf-8"):
        if any(word.startswith("-") for word in words):  # and its `main` would begin to measure
            raise Wrong(f"{name} takes no options")
        return
    else:
        found, given = parser_of(spec.name, tuple(words))
    _argparse(found, given, whole)


def _finish(words: list[str], whole: bool) -> None:
    """Its own options, and around them the words of the training command."""
    found, given = parser_of("cards.__main__", tuple(words))
    with _exact(found):
        _, others = found.parse_known_args(given)
    _module("recipes.iter_w2s", others, whole)


class _Reached(BaseException):
    """The parser was handed its words. No Exception: nobody between here and there may catch it."""


@lru_cache(maxsize=256)
def parser_of(module: str, words: tuple[str, ...], function: str = "main") -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser that a module's ``main`` makes, and the words that it would have parsed.

    Args:
        module: its name.
        words: its command line. `--help` is added and taken away again: with it, no ``main`` looks for files first.
        function: another name of ``main``.

    Raises:
        Wrong: it ended before it parsed anything.
    """

    def reach(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        raise _Reached(self, [word for word in (sys.argv[1:] if args is None else args) if word != "--help"])

    main = getattr(importlib.import_module(module), function)
    line = [*words, "--help"]
    with _in_repo(), patch.object(argparse.ArgumentParser, "parse_known_args", reach):
        try:
            with patch.object(sys, "argv", [module, *line]):
                main(line) if main.__code__.co_argcount else main()
        except _Reached as reached:
            return reached.args
        except Exception as error:
            raise Wrong(f"{module}: {error}") from error
    raise AssertionError(f"{module} ran without a parser")


@contextlib.contextmanager
def _in_repo() -> Iterator[None]:
    """Paths on the page are relative to the clone."""
    before, variables = Path.cwd(), dict(os.environ)
    os.chdir(REPO)
    try:
        yield
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(variables)


def _argparse(parser: argparse.ArgumentParser, words: list[str], whole: bool) -> argparse.Namespace:
    """Parse words, or look at their options only.

    Raises:
        Wrong: as the parser says.
    """
    if not whole:
        known = _options(parser)
        if unknown := [w for w in words if w.startswith("--") and w.partition("=")[0] not in known]:
            raise Wrong(f"{parser.prog}: no option {', '.join(unknown)}")
        return argparse.Namespace()

    def refuse(self: argparse.ArgumentParser, message: str) -> Any:
        raise Wrong(f"{self.prog}: {message}")

    with patch.object(argparse.ArgumentParser, "error", refuse), _exact(parser):
        parser.__dict__.pop("error", None)  # a recipe puts its own there
        return parser.parse_args(words)


@contextlib.contextmanager
def _exact(parser: argparse.ArgumentParser) -> Iterator[None]:
    """argparse takes the first letters of an option for the option: a page should have its name."""
    inner = [parser, *(p for a in parser._actions for p in _subparsers(a).values())]
    before = [one.allow_abbrev for one in inner]
    for one in inner:
        one.allow_abbrev = False
    try:
        yield
    finally:
        for one, value in zip(inner, before):
            one.allow_abbrev = value


def _options(parser: argparse.ArgumentParser) -> set[str]:
    """The options of a parser and of its commands."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        for inner in _subparsers(action).values():
            found |= _options(inner)
    return found


def _subparsers(action: argparse.Action) -> dict[str, argparse.ArgumentParser]:
    return action.choices if isinstance(action, argparse._SubParsersAction) else {}


def _click(app: Any, words: list[str]) -> None:
    """Give words to a typer application, one nested command after the other.

    Raises:
        Wrong: as the command says.
    """
    import typer

    command = app if hasattr(app, "make_context") else typer.main.get_command(app)
    try:
        context = command.make_context(command.name or "", list(words))
        while hasattr(command, "resolve_command"):
            rest = [*context._protected_args, *context.args]
            name, command, rest = command.resolve_command(context, rest)
            context = command.make_context(name, rest, parent=context)
    except Exception as problem:  # usage errors are told by what they can do, as in eval.launcher
        if not hasattr(problem, "exit_code"):
            raise
        raise Wrong(getattr(problem, "message", str(problem))) from None
