"""Gold labels: what people said of answers, one JSON object a line.

This is the format's reference. A verdict on one answer::

    {"question_id": "6f0c…", "video_id": "91ab…", "response_sha256": "c0535e4be2b79ffd", "annotator": "ada",
     "label": "correct", "reference_shown": false, "labelled_at": "2026-01-31T12:00:00Z"}

``label`` is ``correct``, ``incorrect`` or ``unsure``. A choice between two answers to one question::

    {"question_id": "6f0c…", "video_id": "91ab…",
     "left": {"model": "runs/demo/arms/dpo/round-1", "response_sha256": "c0535e4be2b79ffd"},
     "right": {"model": "runs/demo/models/base", "response_sha256": "2e4b90c4a2d6f2a1"},
     "annotator": "ada", "label": "A", "reference_shown": false, "labelled_at": "2026-01-31T12:00:00Z"}

``label`` is ``A`` (the answer that stood left is better), ``B`` (the right one), ``tie`` or ``unsure``; the models'
names are recorded and were not shown. Verdicts and choices may stand in one file.

* ``response_sha256``: first 16 hex digits of the SHA-256 of the answer's text in UTF-8. A label belongs to a text, not
  to a model: it counts for whoever gives this answer to this question, and no longer once the answer has changed.
* ``reference_shown`` (optional, false): the annotator had looked at the reference answers.
* ``asked`` (optional, true): false for two equal answers, a tie that nobody was asked about.
* ``labelled_at`` (optional): UTC. Other keys are left alone.

Lines are only ever added, and each is on the disk before the page goes on. The last label of an annotator on an item is
the one that counts. A last line that a kill has torn is ignored with a note; any other broken line is an error.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dataset_builder.errors import KitError, RowError
from dataset_builder.stages import fsync_folder

VERDICTS = ("correct", "incorrect", "unsure")
CHOICES = ("A", "B", "tie", "unsure")
HASH_DIGITS = 16
MOST_NAME = 64  # characters of an annotator's name


@dataclass(frozen=True)
class GoldLabel:
    """What one annotator said of one item.

    Attributes:
        question_id: the question.
        video_id: its video.
        responses: hash of the answer, or of the left and the right answer.
        annotator: who said it.
        label: one of ``VERDICTS``, or of ``CHOICES`` for a pair.
        models: who gave the left and the right answer; empty for a verdict.
        reference_shown: the annotator had looked at the reference answers.
        asked: False if nobody was asked, because both answers are equal.
        labelled_at: time in UTC, or None.
    """

    question_id: str
    video_id: str
    responses: tuple[str, ...]
    annotator: str
    label: str
    models: tuple[str, ...] = ()
    reference_shown: bool = False
    asked: bool = True
    labelled_at: str | None = None

    @property
    def is_pair(self) -> bool:
        """Whether two answers were compared."""
        return len(self.responses) == 2

    @property
    def item(self) -> tuple:
        """What was labelled: the question and its answers, whichever stood left."""
        return (self.question_id, *sorted(self.responses))

    def as_json(self) -> str:
        """The label's line, without the newline."""
        row: dict = {"question_id": self.question_id, "video_id": self.video_id}
        if self.is_pair:
            for side, model, response in zip(("left", "right"), self.models, self.responses, strict=True):
                row[side] = {"model": model, "response_sha256": response}
        else:
            row["response_sha256"] = self.responses[0]
        row |= {"annotator": self.annotator, "label": self.label, "reference_shown": self.reference_shown}
        if not self.asked:
            row["asked"] = False
        if self.labelled_at:
            row["labelled_at"] = self.labelled_at
        return json.dumps(row, ensure_ascii=False)


def response_hash(response: str) -> str:
    """16 hex digits that tell one answer's text from another."""
    return hashlib.sha256(response.encode("utf-8", "surrogatepass")).hexdigest()[:HASH_DIGITS]


def read_gold(path: str | Path, history: bool = False) -> list[GoldLabel]:
    """Read a label file, in the order of its lines.

    Args:
        path: the JSONL.
        history: also give labels that the same annotator has replaced later.

    Raises:
        KitError: if there is no such file, or a line is not a label, naming line and field.
    """
    path = Path(path)
    try:
        with open(path, "rb") as stream, _locked(stream.fileno(), fcntl.LOCK_SH):
            content = stream.read()
    except FileNotFoundError:
        raise KitError(f"{path}: no such file; `python -m eval label` writes it") from None
    except OSError as error:
        raise KitError(f"{path}: cannot be read ({error.strerror})") from None
    *lines, last = content.split(b"\n")
    if _object(last) is not None:  # whole, only its newline is missing
        lines.append(last)
    elif last.strip():
        print(f"note: {path}: the last line was torn by a kill and is ignored", file=sys.stderr)
    labels = [_parse(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    return labels if history else latest(labels)


def latest(labels: Iterable[GoldLabel]) -> list[GoldLabel]:
    """The labels that count: of each annotator the last one on each item, in order of first appearance."""
    return list({(label.annotator, label.item): label for label in labels}.values())


def clean_name(name: str) -> str:
    """An annotator's name without spaces around it.

    Raises:
        KitError: if it is empty, too long, or holds characters that cannot be seen.
    """
    name = name.strip()
    if not name or len(name) > MOST_NAME or not name.isprintable():
        raise KitError(f"an annotator's name needs 1 to {MOST_NAME} visible characters, not {name[:80]!r}")
    return name


class LabelFile:
    """A label file that is added to.

    Several processes may add to one file: each line is written at once, under a lock.

    Args:
        path: the JSONL; it is made with the first label.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._seen: tuple | None = None
        self._labels: list[GoldLabel] = []

    def labels(self) -> list[GoldLabel]:
        """The labels that count now; read again only if the file has changed.

        Raises:
            KitError: see :func:`read_gold`.
        """
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return []
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
        if stamp != self._seen:
            self._labels, self._seen = read_gold(self.path), stamp
        return self._labels

    def append(self, label: GoldLabel) -> None:
        """Add a label; it is on the disk when this returns, or not in the file at all.

        Raises:
            KitError: if it cannot be stored.
        """
        line = label.as_json().encode("utf-8", "surrogatepass") + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            is_new = not self.path.exists()
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                with _locked(descriptor, fcntl.LOCK_EX):
                    _mend(descriptor)
                    _write_whole(descriptor, line)
            finally:
                os.close(descriptor)
            if is_new:
                fsync_folder(self.path.parent)
        except OSError as error:
            raise KitError(f"{self.path}: the label could not be stored ({error.strerror or error})") from None


@contextlib.contextmanager
def _locked(descriptor: int, kind: int) -> Iterator[None]:
    try:
        fcntl.flock(descriptor, kind)
    except OSError:  # a file system without locks: one writer at a time is then up to the people
        yield
        return
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _mend(descriptor: int) -> None:
    """End the file in a whole line: a torn tail was never acknowledged and goes."""
    size = os.fstat(descriptor).st_size
    if not size or os.pread(descriptor, 1, size - 1) == b"\n":
        return
    content = os.pread(descriptor, size, 0)
    tail = content[content.rfind(b"\n") + 1 :]
    if _object(tail) is not None:
        _write_whole(descriptor, b"\n")
    else:
        os.ftruncate(descriptor, size - len(tail))


def _write_whole(descriptor: int, data: bytes) -> None:
    """Write and fsync, or leave the file as it was."""
    size = os.fstat(descriptor).st_size
    try:
        rest = data
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def _object(line: bytes) -> dict | None:
    try:
        row = json.loads(line.decode("utf-8", "surrogatepass"))
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _parse(path: Path, number: int, line: bytes) -> GoldLabel:
    row = _object(line)
    if row is None:
        raise RowError(path, number, None, "not a JSON object; take the line out or mend it")

    def text(field: str, of: dict = row, prefix: str = "") -> str:
        value = of.get(field)
        if not isinstance(value, str) or not value:
            raise RowError(path, number, prefix + field, f"must be a text, not {value!r}")
        return value

    def hashed(of: dict, prefix: str = "") -> str:
        value = text("response_sha256", of, prefix)
        if len(value) != HASH_DIGITS or set(value) - set("0123456789abcdef"):
            reason = f"must be the first {HASH_DIGITS} hex digits of the answer's SHA-256, not {value!r}"
            raise RowError(path, number, prefix + "response_sha256", reason)
        return value

    def flag(field: str, default: bool) -> bool:
        value = row.get(field, default)
        if not isinstance(value, bool):
            raise RowError(path, number, field, f"must be true or false, not {value!r}")
        return value

    is_pair = "left" in row or "right" in row
    if is_pair:
        sides = {side: row.get(side) for side in ("left", "right")}
        for side, value in sides.items():
            if not isinstance(value, dict):
                raise RowError(path, number, side, f"must hold model and response_sha256, not {value!r}")
        responses = tuple(hashed(value, f"{side}.") for side, value in sides.items())
        models = tuple(text("model", value, f"{side}.") for side, value in sides.items())
    else:
        responses, models = (hashed(row),), ()
    label, allowed = text("label"), CHOICES if is_pair else VERDICTS
    if label not in allowed:
        raise RowError(path, number, "label", f"must be one of {', '.join(allowed)}, not {label!r}")
    labelled_at = row.get("labelled_at")
    return GoldLabel(
        question_id=text("question_id"),
        video_id=text("video_id"),
        responses=responses,
        annotator=text("annotator"),
        label=label,
        models=models,
        reference_shown=flag("reference_shown", False),
        asked=flag("asked", True),
        labelled_at=labelled_at if isinstance(labelled_at, str) else None,
    )
