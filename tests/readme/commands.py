"""The commands of a Markdown page: fenced ``bash`` and ``python`` blocks, and commands in running text."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import yaml

REPO = Path(__file__).resolve().parents[2]
README = REPO / "README.md"
HERE = Path(__file__).parent
PROGRAMS = ("make", "python", "accelerate", "torchrun", "lighteval", "hf", "pip", "vllm")
# Programs that are named without being typed: `vllm serve`, and an environment's own by its path.
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_SET = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_STANDS_FOR = re.compile(r"(?<![\w.=-])[A-Z][A-Z_]*[A-Z](?:\.[a-z]+)?(?![\w=])")


@dataclass(frozen=True)
class Command:
    """One command, or one block of Python.

    Attributes:
        line: of the page, from 1, on which it begins.
        kind: ``bash`` (a line of a block), ``inline`` (in running text) or ``python`` (a whole block).
        text: as a person types it, without the comment behind it.
    """

    line: int
    kind: str
    text: str

    @cached_property
    def words(self) -> list[str]:
        """As a shell splits it; without the variables set in front."""
        words = shlex.split(self.text, comments=True)
        while words and _SET.match(words[0]):
            words = words[1:]
        return words

    @cached_property
    def variables(self) -> dict[str, str]:
        """The variables set in front of it."""
        words = shlex.split(self.text, comments=True)
        count = len(words) - len(self.words)
        return dict(word.split("=", 1) for word in words[:count])

    def words_after(self, option: str) -> str | None:
        """The word that follows an option; None without the option, or in a block of Python."""
        words = [] if self.kind == "python" else self.words
        return words[words.index(option) + 1] if option in words[:-1] else None

    @property
    def whole(self) -> bool:
        """Whether it can be typed as it stands; a text may leave out a part of a command with `…`."""
        return "…" not in self.text


def commands_of(page: Path = README) -> list[Command]:
    """All commands of a page, in its order.

    Raises:
        ValueError: a line of a block is no command that these tests know.
    """
    text = page.read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(text):
        language, body, line = fence[1], fence[2], text.count("\n", 0, fence.start()) + 2
        if language == "python":
            found.append(Command(line, "python", body))
        elif language == "bash":
            found += _block(body, line)
    # Blocks are blanked out, so that what is left keeps its place on the page.
    prose = _FENCE.sub(lambda fence: re.sub(r"[^\n]", " ", fence[0]), text)
    for code in _INLINE.finditer(prose):
        inline = Command(text.count("\n", 0, code.start()) + 1, "inline", " ".join(code[1].split()))
        if len(inline.text.split()) > 1 and _is_command(inline):
            found.append(inline)
    return sorted(found, key=lambda command: command.line)


def commands_of_config(config: Path) -> list[Command]:
    """The commands in a YAML file's comments: lines indented behind their `#`.

    What stands in brackets may be left out, and a single capital letter stands for a number.
    """
    lines = [re.match(r"#   +(.*)|", line)[1] or "" for line in config.read_text(encoding="utf-8").split("\n")]
    body = re.sub(r"[\[\]]", "", "\n".join(lines))
    return _block(re.sub(r"(?<= )[A-Z](?=\s)", "1", body), 1, strict=False)


def _block(body: str, line: int, strict: bool = True) -> list[Command]:
    found = []
    lines = body.split("\n")
    while lines:
        count = 1
        while lines[count - 1].endswith("\\"):
            count += 1
        joined = " ".join(part.removesuffix("\\").strip() for part in lines[:count])
        command = Command(line, "bash", _without_comment(joined))
        if _is_command(command):
            found.append(command)
        elif strict and command.text and not command.text.startswith("#"):
            raise ValueError(f"line {line}: `{command.text}` begins with none of {', '.join(PROGRAMS)}")
        line, lines = line + count, lines[count:]
    return found


def _without_comment(text: str) -> str:
    """Cut at the `#` from which on a shell reads no word."""
    try:
        words = shlex.split(text, comments=True)
    except ValueError:  # half a quotation
        return text.strip()
    for place in (at for at, letter in enumerate(text) if letter == "#"):
        try:
            if shlex.split(text[:place]) == words:
                return text[:place].strip()
        except ValueError:  # within quotes
            continue
    return text.strip()


def _is_command(command: Command) -> bool:
    try:
        words = command.words
    except ValueError:  # half a quotation is no command
        return False
    return bool(words) and Path(words[0]).name in PROGRAMS


@lru_cache
def table(name: str) -> dict:
    """One of the checked-in tables beside this file."""
    return yaml.safe_load((HERE / name).read_text(encoding="utf-8"))


def stand_ins() -> dict[str, str]:
    """What every capital word stands for when the commands are typed."""
    return {word: row["typed"] for word, row in table("stand_ins.yaml").items()}


def capitals(text: str) -> set[str]:
    """Words such as `DIR` and `RULES.yaml` that a person replaces."""
    return {word for word in _STANDS_FOR.findall(text) if not word.startswith(("SEED", "OMP_", "MMAIP_", "HF_"))}


def typed(text: str) -> str:
    """A command with its capital words replaced; the longest first, so that `NAMESPACE/NAME` is not `NAMESPACE`/…"""
    for word, value in sorted(stand_ins().items(), key=lambda item: -len(item[0])):
        text = re.sub(rf"(?<![\w.=-]){re.escape(word)}(?![\w=])", lambda _, value=value: value, text)
    return text
