"""Strict YAML into dataclasses: a typo is one clear line, never a setting that is silently ignored."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from dataset_builder.errors import KitError
from dataset_builder.text import one_line

T = TypeVar("T")


def near(word: object, known: typing.Iterable[str], cutoff: float = 0.6) -> str:
    """``; did you mean 'x' or 'y'?`` for the known words closest to ``word``, or an empty string."""
    matches = difflib.get_close_matches(str(word), list(known), n=2, cutoff=cutoff)
    return f"; did you mean {' or '.join(repr(match) for match in matches)}?" if matches else ""


class _Loader(yaml.SafeLoader):
    """The safe loader, but a key that stands twice in one mapping is an error and not a silent overwrite."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                if key_node.value in seen:
                    line = key_node.start_mark
                    raise yaml.constructor.ConstructorError(None, None, f"'{key_node.value}' stands here twice", line)
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The top mapping of a YAML file, plain values only (no tags that make Python objects).

    Raises:
        KitError: missing, unreadable, not YAML, or not a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise KitError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise KitError(f"{path}: is a folder; name the YAML file in it") from None
    except UnicodeDecodeError:
        raise KitError(f"{path}: is not UTF-8 text") from None
    except (OSError, ValueError) as error:
        raise KitError(f"{path}: cannot be read ({error})") from None
    try:
        data = yaml.load(text, Loader=_Loader)  # a SafeLoader: see the class
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = error.problem or error.context or "not understood"
        if "could not determine a constructor" in problem:
            tag = re.search(r"'(.*)'", problem)
            problem = f"the tag {tag.group(1) if tag else ''} is refused: plain values only"
        raise KitError(f"{place}: not valid YAML: {' '.join(problem.split())}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an impossible date such as 2024-99-99
        raise KitError(f"{path}: not valid YAML: {' '.join(str(error).split()) or type(error).__name__}") from None
    if data is None:
        raise KitError(f"{path}: is empty")
    if not isinstance(data, dict):
        raise KitError(f"{path}: must hold `key: value` lines, not {_kind(data)}")
    return data


def load_yaml(path: str | Path, cls: type[T]) -> T:
    """Read a YAML file into the dataclass ``cls``; nested dataclasses, lists, dicts, unions and literals are checked.

    A field without default must be there. A ``ValueError`` from a ``__post_init__`` becomes a line that names the key.

    Raises:
        KitError: one line with the file, the dotted key, and near matches for a key that is not known.
    """
    return from_dict(read_yaml(path), cls, str(path))


def from_dict(data: Any, cls: type[T], file: str, key: str = "") -> T:
    """The same for a mapping already read; ``file`` and ``key`` say in messages where it came from."""
    return _value(data, cls, file, key)


def _fail(file: str, key: str, reason: str) -> KitError:
    return KitError(one_line(f"{file}: {key}: {reason}" if key else f"{file}: {reason}"))


def _join(key: str, part: object) -> str:
    return f"{key}.{part}" if key else str(part)


def _dataclass(data: Any, cls: type, file: str, key: str):
    if not isinstance(data, dict):
        raise _fail(file, key, f"must be `key: value` lines, not {_kind(data)}")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for name in data:
        if name not in fields:
            deeper = [path for path in _dotted(cls) if path.split(".")[-1] == name]
            hint = f"; did you mean {deeper[0]!r}?" if deeper else near(name, fields)
            raise _fail(file, _join(key, name), f"is not a known key{hint or '; known are ' + ', '.join(fields)}")
    hints, values = typing.get_type_hints(cls), {}
    for name, spec in fields.items():
        if name in data:
            values[name] = _value(data[name], hints[name], file, _join(key, name))
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise _fail(file, _join(key, name), "is missing")
    try:
        return cls(**values)
    except ValueError as error:
        raise _fail(file, key, str(error)) from None


def _dotted(cls: type, prefix: str = "") -> list[str]:
    """Dotted keys of the dataclasses inside ``cls``: somebody's `temperature` belongs under `decoding`."""
    paths = []
    for name, hint in typing.get_type_hints(cls).items():
        for inner in (hint, *typing.get_args(hint)) if typing.get_origin(hint) is types.UnionType else (hint,):
            if dataclasses.is_dataclass(inner):
                inside = [f.name for f in dataclasses.fields(inner)]
                paths += [f"{prefix}{name}.{part}" for part in inside] + _dotted(inner, f"{prefix}{name}.")
    return paths


def _value(value: Any, hint: Any, file: str, key: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _dataclass(value, hint, file, key)
    if origin in (typing.Union, types.UnionType):
        return _union(value, args, file, key)
    if origin is Literal:
        if value in args and type(value) in {type(arg) for arg in args}:
            return value
        known = ", ".join(repr(arg) for arg in args)
        raise _fail(file, key, f"must be one of {known}, not {value!r}{near(value, map(str, args))}")
    if origin in (list, tuple):
        if not isinstance(value, list):
            raise _fail(file, key, f"must be a list, not {_kind(value)}")
        entries = [_value(entry, args[0] if args else Any, file, f"{key}[{i}]") for i, entry in enumerate(value)]
        return origin(entries)
    if origin is dict or hint is dict:
        if not isinstance(value, dict):
            raise _fail(file, key, f"must be `key: value` lines, not {_kind(value)}")
        inner = args[1] if args else Any
        return {str(name): _value(entry, inner, file, _join(key, name)) for name, entry in value.items()}
    return _scalar(value, hint, file, key)


def _union(value: Any, args: tuple, file: str, key: str) -> Any:
    if value is None and type(None) in args:
        return None
    choices = [arg for arg in args if arg is not type(None)]
    if len(choices) == 1:
        return _value(value, choices[0], file, key)
    if all(dataclasses.is_dataclass(choice) for choice in choices):  # told apart by their literal `kind`
        if not isinstance(value, dict):
            raise _fail(file, key, f"must be `key: value` lines, not {_kind(value)}")
        kinds = {typing.get_args(typing.get_type_hints(choice)["kind"])[0]: choice for choice in choices}
        kind = value.get("kind")
        if not isinstance(kind, str) or kind not in kinds:
            said = "is missing" if kind is None else f"{kind!r} is not known{near(kind, kinds)}"
            raise _fail(file, _join(key, "kind"), f"{said} (known are {', '.join(kinds)})")
        return _dataclass(value, kinds[kind], file, key)
    for choice in choices:
        try:
            return _value(value, choice, file, key)
        except KitError:
            continue
    expected = " or ".join(getattr(choice, "__name__", str(choice)) for choice in choices)
    raise _fail(file, key, f"must be {expected}, not {_kind(value)}")


_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}


def _scalar(value: Any, hint: type, file: str, key: str) -> Any:
    if hint is float:
        # YAML 1.1 reads 1e-4 (no dot) as text; everybody who writes it means the number.
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
            value = float(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif hint is Path:
        if isinstance(value, str):
            return Path(value)
    elif isinstance(value, hint):
        return value
    said = f"{_kind(value)} ({value!r})" if isinstance(value, (str, int, float)) else _kind(value)
    quotes = "; put it in quotes" if hint is str and value is not None and not isinstance(value, (dict, list)) else ""
    raise _fail(file, key, f"must be {_WORDS.get(hint, hint.__name__)}, not {said}{quotes}")


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return _WORDS.get(type(value), type(value).__name__)
