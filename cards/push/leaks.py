"""Secrets, and names of this machine, in what is about to leave: names and texts of files, strings and videos in
Parquet, headers of safetensors, metadata of pictures and whatever else can be read in files that are no text.

The patterns of secrets are detect-secrets'; it reads line by line, so here each pattern first goes over the whole text
and only what it finds is looked at closely. Its two detectors of "high entropy" are left out: the kit's files are full
of hashes. What it does not know (tokens of the Hub, values of this process's own variables) is added.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cards.push.binary import edges, printable
from cards.push.plan import PlannedFile

TEXT_LIMIT = 256 * 2**20  # bytes; a text file above is looked at up to here
SHOWN = 5  # findings of one file
_HEADER = 100 * 2**20  # bytes; the longest header that safetensors allows
# Patterns that start anywhere and are slow: their service has to be named in the text.
_NAMED = {
    "CloudantDetector": ("cloudant",),
    "IbmCloudIamDetector": ("ibm", "iam"),
    "IbmCosHmacDetector": ("ibm", "cos", "hmac"),
    "SoftlayerDetector": ("softlayer",),
    "ArtifactoryDetector": ("artifactory", "jfrog", "akc", "ap"),
}
_LEFT_OUT = {"IPPublicDetector"}  # an address is no secret
_MORE = {
    "Hugging Face Token": re.compile(r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{30,}"),
    "API Key (sk-…)": re.compile(r"(?<![A-Za-z0-9_-])sk-(?:ant-|proj-|or-)?[A-Za-z0-9_-]{32,}"),
    "Google API Key": re.compile(r"(?<![A-Za-z0-9_-])AIza[A-Za-z0-9_-]{35}"),
}
_SAID = re.compile(r"(?i)pass(?:word|wd|phrase)|secret|api_?-?key|(?:auth|access|bearer)_?-?(?:key|token)|private_?key")
_SECRET_NAME = re.compile(r"(?i)token|secret|passw|api_?key|access_?key|credential")
_PLACEHOLDER = re.compile(
    r"^[A-Z][A-Z0-9_]*$|^(?i:none|null|true|false|empty|\W*|x+|…)$|[<>{}]|(?i:your|example|dummy)"
)
_VOCABULARY = {"tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"}
_COMMON_USERS = {"root", "user", "admin", "ubuntu", "debian", "runner", "nobody", "jovyan", "docker", "home", "test"}
_BEFORE = r"(?<![\w.:/\\~$}>*)-])"
_HOMES = re.compile(
    _BEFORE
    + r"/(?:home|Users|root|mnt|media|scratch|workspace|gpfs|lustre|nfs|fsx|tmp|var/tmp|var/folders|private/var)"
    r"/[\w.@+-]+(?:/[\w.@+-]+)*|\b[A-Za-z]:\\+Users\\+[\w.-]+"
)
_WHOLE = re.compile(r'"((?:/[\w.+@-]+){2,}/?)"')  # a JSON string that is a path from the root on, and nothing else


@dataclass(frozen=True)
class Finding:
    """Something that must not leave.

    Attributes:
        where: file, and line or column.
        what: in words, with a secret masked.
    """

    where: str
    what: str


class Leaks:
    """Looks for secrets and for names of this machine.

    Args:
        folders: whose paths must not be named (the clone, the run folder).
        allowed: strings that a person says are neither.
        namespace: of the Hub; a person's name there is public.
    """

    def __init__(self, folders: Sequence[Path] = (), allowed: Sequence[str] = (), namespace: str = ""):
        self.allowed = set(allowed)
        here = {Path.home(), Path.cwd(), Path(__file__).parents[2], *folders}
        paths = {str(path.absolute()) for path in here} | {str(path.resolve()) for path in here}
        paths = sorted((path for path in paths if path.count("/") > 1), key=len, reverse=True)
        self._own = re.compile("|".join(re.escape(path) + r"(?![\w-])[\w./+@-]*" for path in paths)) if paths else None
        names = {getpass.getuser(), socket.gethostname()}
        names = {n for n in names if len(n) > 3 and n.lower() not in _COMMON_USERS and n.lower() != namespace.lower()}
        self._names = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in sorted(names))) if names else None
        self._values = sorted(
            {
                v
                for k, v in os.environ.items()
                if _SECRET_NAME.search(k) and len(v) > 11 and "/" not in v and " " not in v
            }
        )

    @cached_property
    def _detectors(self) -> list:
        from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
        from detect_secrets.plugins.base import RegexBasedDetector

        kinds = get_mapping_from_secret_type_to_class().values()
        return [kind() for kind in kinds if issubclass(kind, RegexBasedDetector) and kind.__name__ not in _LEFT_OUT]

    def in_file(self, file: PlannedFile) -> Iterator[Finding]:
        """Findings in the name and the content of one planned file."""
        name = file.path.rsplit("/", 1)[-1]
        for finding in self._in_text("", file.path, named=True, whole=False):
            yield Finding(f"the name of a file in {file.path.rpartition('/')[0] or 'the top folder'}", finding.what)
        if name.endswith(".parquet"):
            yield from self._in_parquet(file)
        elif name.endswith(".safetensors"):
            yield from self._in_text(file.path, _header(file), named=False, whole=True)
        elif (text := _text(file)) is not None:
            structured = name.endswith((".json", ".jsonl", ".yaml", ".yml"))
            yield from self._in_text(file.path, text, named=name not in _VOCABULARY, whole=structured)
        else:
            yield from self._in_binary(file.path, printable(_content(file)))

    def in_words(self, where: str, text: str) -> Iterator[Finding]:
        """Findings in words that go along with the files: titles, notes, names of tags."""
        yield from self._in_text(where, text, named=True, whole=False)

    def _in_binary(self, where: str, text: str) -> Iterator[Finding]:
        for _, what in sorted({*self._secrets(text), *self._paths(text, whole=False)}):
            yield Finding(where, f"in what it says of itself: {what}")

    def _in_text(self, path: str, text: str, named: bool, whole: bool) -> Iterator[Finding]:
        """Findings in a text.

        Args:
            path: the file's.
            text: all of it.
            named: also look for what is called a password, and for the names of person and machine.
            whole: also take a quoted string that is nothing but a path from the root on for one of this machine.
        """
        found = list(self._secrets(text))
        if named:
            found += self._called_secret(path, text)
        found += self._paths(text, whole)
        if named and self._names is not None:
            found += [(m.start(), f"the name of this user or machine ({m[0]})") for m in self._names.finditer(text)]
        for place, what in sorted(set(found)):
            yield Finding(f"{path}:{text.count(chr(10), 0, place) + 1}", what)

    def _secrets(self, text: str) -> Iterator[tuple[int, str]]:
        from detect_secrets.filters import heuristic

        small = text.lower()
        for detector in self._detectors:
            words = _NAMED.get(type(detector).__name__)
            if words and not any(word in small for word in words):
                continue
            for pattern in detector.denylist:
                for match in pattern.finditer(text):
                    values = list(detector.analyze_string(match[0])) or [match[0]] * (
                        detector.secret_type != "JSON Web Token"
                    )
                    for value in values[:1]:
                        if value not in self.allowed and not heuristic.is_templated_secret(value):
                            yield match.start(), _looks_like(detector.secret_type, value)
        for kind, pattern in _MORE.items():
            for match in pattern.finditer(text):
                if match[0] not in self.allowed:
                    yield match.start(), _looks_like(kind, match[0])
        for value in self._values:
            if value not in self.allowed and (place := text.find(value)) >= 0:
                yield place, "the value of a secret variable of this process; take it out"

    def _called_secret(self, path: str, text: str) -> Iterator[tuple[int, str]]:
        """What is assigned to a password, key or the like, by detect-secrets' own rules for the kind of file."""
        from detect_secrets.filters import heuristic
        from detect_secrets.plugins.keyword import KeywordDetector

        detector, place = KeywordDetector(), 0
        for line in text.splitlines(keepends=True):
            if len(line) < 10_000 and _SAID.search(line):
                for secret in detector.analyze_line(filename=path, line=line.rstrip()):
                    value = secret.secret_value or ""
                    if value in self.allowed or _PLACEHOLDER.search(value) or not re.search(r"\d", value):
                        continue
                    if heuristic.is_indirect_reference(line) or heuristic.is_prefixed_with_dollar_sign(value):
                        continue
                    yield place, _looks_like(secret.type, value)
            place += len(line)

    def _paths(self, text: str, whole: bool) -> Iterator[tuple[int, str]]:
        patterns = [(self._own, 0), (_HOMES, 0), (_WHOLE, 1) if whole else (None, 0)]
        seen: list[tuple[int, int]] = []
        for pattern, group in patterns:
            for match in pattern.finditer(text) if pattern is not None else ():
                if match[group] in self.allowed or any(a <= match.start(group) < b for a, b in seen):
                    continue
                seen.append(match.span(group))
                yield match.start(group), f"a path of this machine ({match[group]})"

    def _in_parquet(self, file: PlannedFile) -> Iterator[Finding]:
        """Findings in the string columns, nested ones included, each text once a row group; and in bytes of videos."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        table = pq.ParquetFile(file.source if isinstance(file.source, Path) else pa.BufferReader(file.source))
        leaves = [table.schema.column(place) for place in range(len(table.schema))]
        held = [leaf for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        columns = [leaf.path for leaf in held if leaf.logical_type.type == "STRING"]
        binary = [leaf.path for leaf in held if leaf.logical_type.type != "STRING"]
        about = {key.decode("utf-8", "replace"): value for key, value in (table.metadata.metadata or {}).items()}
        for key, value in about.items():
            if key != "ARROW:schema":  # which is in base64
                yield from self._in_binary(f"{file.path}: metadata {key}", printable(value))
        reported: set[tuple[str, str]] = set()
        for group in range(table.num_row_groups):
            for column in columns:
                for values in _strings(table.read_row_group(group, columns=[column])):
                    texts = [text for text in pc.unique(values).to_pylist() if text]
                    for finding in self._in_strings(texts):
                        if (column, finding) not in reported:
                            reported.add((column, finding))
                            yield Finding(f"{file.path}: column {column.split('.')[0]}", finding)
            for column in binary:
                for content in _contents(table.read_row_group(group, columns=[column])):
                    for finding in self._in_binary("", printable(edges(content))):
                        if (column, finding.what) not in reported:
                            reported.add((column, finding.what))
                            yield Finding(f"{file.path}: column {column.split('.')[0]}", finding.what)

    def _in_strings(self, texts: list[str]) -> Iterator[str]:
        whole = "\n".join(texts)
        for _, what in [*self._secrets(whole), *self._paths(whole, whole=False)]:
            yield what
        for text in texts:
            if text[0] == "/" and text not in self.allowed and _WHOLE.fullmatch(f'"{text}"') and not _HOMES.match(text):
                yield f"a path of this machine ({text})"


def _strings(table) -> Iterator:
    """The arrays of strings in a table of one leaf column, out of their lists and structs."""
    import pyarrow as pa

    arrays = [chunk for column in table.columns for chunk in column.chunks]
    while arrays:
        array = arrays.pop()
        if pa.types.is_struct(array.type):
            arrays += array.flatten()
        elif pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
            arrays.append(array.flatten())
        elif pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
            yield array


def _contents(table) -> Iterator[bytes]:
    """Different contents in a table of one leaf column of bytes; rows of one video come together and are read once."""
    import pyarrow as pa

    arrays, before = [chunk for column in table.columns for chunk in column.chunks], None
    while arrays:
        array = arrays.pop(0)
        if pa.types.is_struct(array.type):
            arrays = array.flatten() + arrays
        elif pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
            arrays.insert(0, array.flatten())
        elif pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type):
            for value in array:
                content = value.as_py()
                if content and content != before:
                    yield content
                before = content


def _content(file: PlannedFile) -> bytes:
    """A file's content; of a long one both ends."""
    if isinstance(file.source, bytes) or file.size <= TEXT_LIMIT:
        return file.read()
    with file.source.open("rb") as stream:
        start = stream.read(TEXT_LIMIT // 2)
        stream.seek(-TEXT_LIMIT // 2, os.SEEK_END)
        return start + b"\0" + stream.read()


def _looks_like(kind: str, value: str) -> str:
    """What is said of a secret: enough to find it, not enough to use it."""
    shown = value[:4] if len(value) > 11 else value[:1]
    return f"what looks like a secret ({kind}: {shown}…); take it out, or allow it with --allow if it is none"


def _text(file: PlannedFile) -> str | None:
    """A file's text; None when it is none."""
    if isinstance(file.source, bytes):
        content = file.source[:TEXT_LIMIT]
    else:
        with file.source.open("rb") as stream:
            if b"\0" in (content := stream.read(8192)):
                return None
            content += stream.read(TEXT_LIMIT)
    if b"\0" in content[:8192]:
        return None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        # A character cut at the limit is still text; anything else is not.
        return content[: error.start].decode() if error.start > len(content) - 4 and content[: error.start] else None


def _header(file: PlannedFile) -> str:
    """What a safetensors file says of itself: ``__metadata__`` may hold anything."""
    content = file.source if isinstance(file.source, bytes) else None
    if content is None:
        with file.source.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            content = stream.read(min(size, _HEADER))
    else:
        content = content[8 : 8 + min(int.from_bytes(content[:8], "little"), _HEADER)]
    try:
        return json.dumps(json.loads(content).get("__metadata__", {}))
    except (ValueError, AttributeError):
        return ""
