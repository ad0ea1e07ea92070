"""The kit's modules that a repo needs to run by itself, and their text with imports that lead into its own package.

What is needed is computed from the sources: every import, also those inside functions, is followed. So a repo is never
short of a module that was added since.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

KIT = ("dataset_builder", "eval", "recipes", "cards")
_DATA = (".yaml", ".j2", ".css", ".js", ".html")
_MODULE = re.compile(rf"({'|'.join(KIT)})(\.\w+)+")


@dataclass(frozen=True)
class Mention:
    """A place in a source where a module of the kit is named: line (from 1) and byte offset of the name."""

    module: str
    line: int
    offset: int


@dataclass(frozen=True)
class Source:
    """A module's file, read once."""

    path: Path
    text: bytes = field(repr=False)
    tree: ast.Module = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> Source:
        """Read and parse a file."""
        text = path.read_bytes()
        return cls(path, text, ast.parse(text, filename=str(path)))

    def constants(self) -> Iterator[ast.Constant]:
        """The texts that stand in it."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node


def closure(roots: Iterable[str], home: Path) -> dict[str, Source]:
    """All modules that these need, packages included.

    Args:
        roots: such as ``eval.tasks``.
        home: the folder that holds the kit's rooms.

    Returns:
        By module, in alphabetical order.

    Raises:
        ValueError: a module cannot be followed: it is missing, or imported in a way that binds its room's name.
    """
    found: dict[str, Source] = {}
    waiting = list(roots)
    while waiting:
        module = waiting.pop()
        if not module or module in found:
            continue
        path = module_file(module, home)
        if path is None:
            raise ValueError(f"there is no module {module} in {home}")
        found[module] = source = Source.read(path)
        waiting.append(module.rpartition(".")[0])
        waiting += [mention.module for mention in mentions(source, home)]
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ImportFrom) and _of_kit(node.module):
                parts = (f"{node.module}.{alias.name}" for alias in node.names)
                waiting += [part for part in parts if module_file(part, home)]
    return dict(sorted(found.items()))


def module_file(module: str, home: Path) -> Path | None:
    """The file of a module below ``home``; None if it has none."""
    path = home.joinpath(*module.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def mentions(source: Source, home: Path) -> Iterator[Mention]:
    """Modules of the kit in imports, and in texts that are nothing but a module's name (as ``import_module`` takes).

    Raises:
        ValueError: an import that cannot be moved.
    """
    lines = source.text.splitlines()
    for node in ast.walk(source.tree):
        where = f"{source.path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ImportFrom) and node.level:
            raise ValueError(f"{where}: a relative import; the kit's are absolute")
        if isinstance(node, ast.ImportFrom) and _of_kit(node.module):
            start = re.match(rb"from\s+", lines[node.lineno - 1][node.col_offset :]).end()
            yield Mention(node.module, node.lineno, node.col_offset + start)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if _of_kit(alias.name) and alias.asname is None:
                    raise ValueError(f"{where}: write `from … import …` or `import {alias.name} as …`")
                if _of_kit(alias.name):
                    yield Mention(alias.name, alias.lineno, alias.col_offset)
    for node in source.constants():
        if _MODULE.fullmatch(node.value) and module_file(node.value, home):
            yield Mention(node.value, node.lineno, node.col_offset + 1)


def moved(source: Source, package: str, home: Path) -> bytes:
    """The text of a source whose imports of the kit are imports from ``package``.

    Raises:
        ValueError: a module is named in a way that cannot be moved.
    """
    lines = source.text.splitlines(keepends=True)
    for mention in sorted(mentions(source, home), key=lambda m: (m.line, m.offset), reverse=True):
        line, place = lines[mention.line - 1], mention.offset
        if not line[place:].startswith(mention.module.encode()):
            raise ValueError(f"{source.path}:{mention.line}: {mention.module} is named in a way that cannot be moved")
        lines[mention.line - 1] = line[:place] + package.encode() + b"." + line[place:]
    return b"".join(lines)


def data_files(modules: Mapping[str, Source]) -> list[Path]:
    """Files other than sources that these modules open: those whose name stands in a module of the same package."""
    texts: dict[Path, set[str]] = {}
    for source in modules.values():
        texts.setdefault(source.path.parent, set()).update(node.value for node in source.constants())
    found = set()
    for folder in texts:
        for path in folder.rglob("*"):
            owner = next(parent for parent in path.parents if parent in texts)  # the nearest package around it
            if path.suffix in _DATA and path.name in texts[owner]:
                found.add(path)
    return sorted(found)


def outside(modules: Mapping[str, Source]) -> set[str]:
    """Top names of what these modules import beyond the kit; the standard library's are among them."""
    names = set()
    for source in modules.values():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    return names - set(KIT)


def _of_kit(module: str | None) -> bool:
    return bool(module) and module.split(".")[0] in KIT
