"""Reading what a person has: a folder of videos and a JSONL file of questions about them.

One line is one question::

    {"video": "cat.mp4", "question": "What does the cat do?", "answer": "It sleeps."}

``video`` (a path inside the videos folder) and ``question`` are needed; ``answer``, ``answers``, ``id``, ``license``,
``source``, ``split`` and ``question_type`` are optional. A line that cannot be used is left out with one clear line;
the rest goes on.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from dataset_builder.config import SPLITS, SourceConfig, SplitConfig, near
from dataset_builder.errors import KitError, RowError
from dataset_builder.media import MediaError, file_sha256, inspect_video, perceptual_hash
from dataset_builder.text import one_line

FIELDS = ("video", "question", "answer", "answers", "license", "id", "question_type", "split", "source")
# Columns of the dataset's `questions` config, in their order; a Question has a few fields more.
COLUMNS = (
    "question_id",
    "video_id",
    "source",
    "source_id",
    "start",
    "end",
    "license",
    "sha256",
    "phash",
    "duration",
    "question",
    "answer",
    "answers",
    "question_type",
    "origin",
)


@dataclass(frozen=True)
class Question:
    """One usable row.

    Attributes:
        question_id: the row's own ``id``, or the first 16 hex digits of sha256(video sha256, start, end, question).
        video_id: first 16 hex digits of the video's sha256.
        source: name of the source.
        source_id: what the source calls the video; here its path inside the videos folder.
        start: second at which the part of the source's video begins that this file is, None for all of it.
        end: second at which it ends.
        license: licence of the video.
        sha256: of the video file's bytes, 64 hex digits.
        phash: perceptual hash of its middle frame, 16 hex digits.
        duration: of the video, seconds.
        question: the question's text.
        answer: first of ``answers``, None without any.
        answers: reference answers, the best one first.
        question_type: the row's own word for it, or None.
        origin: where the question comes from: ``given`` (a row of a file).
        split: ``train``, ``validation`` or ``test``.
        path: the video file on this machine.
        file: the JSONL file.
        row: its line there, from 1.
    """

    question_id: str
    video_id: str
    source: str
    source_id: str
    start: float | None
    end: float | None
    license: str
    sha256: str
    phash: str
    duration: float
    question: str
    answer: str | None
    answers: list[str]
    question_type: str | None
    origin: str
    split: str
    path: str
    file: str
    row: int

    def columns(self) -> dict[str, Any]:
        """This question as a row of the ``questions`` config."""
        row = asdict(self)
        return {name: row[name] for name in COLUMNS}


def read_source(
    source: SourceConfig, split: SplitConfig | None = None, progress: bool = False
) -> tuple[list[Question], list[RowError]]:
    """Read, check, hash and probe a source. Every video file is opened once, however many questions it has.

    Args:
        source: folder, JSONL file and what to assume of rows that do not say.
        split: shares for the videos of which no row names a split.
        progress: show a bar over the videos on stderr.

    Returns:
        The usable questions in the file's order, and one RowError for each row left out, in the file's order. Exact
        repetitions of a row are among them with the kind ``duplicate_row``.

    Raises:
        KitError: the folder or the file is missing or holds nothing.
    """
    folder = Path(source.videos)
    if not folder.is_dir():
        raise KitError(f"source.videos: {source.videos}: there is no such folder")
    rows, rejected = _read_rows(source.questions)
    videos = _Videos(folder)
    if progress:
        from tqdm.auto import tqdm

        for name in tqdm(sorted({row["video"] for _, row in rows}), desc="videos", unit="video"):
            videos.get(name)
    questions: list[Question] = []
    named: dict[str, tuple[str, int]] = {}  # video sha256 -> (split, the row that named it)
    seen: dict[str, Question] = {}
    for number, row in rows:
        try:
            question = _question(row, number, source, videos)
            _check_split(question, row, named)
            earlier = seen.setdefault(question.question_id, question)
            if earlier is not question:
                raise _repetition(question, earlier)
        except RowError as error:
            rejected.append(error)
            continue
        if row.get("split"):
            named.setdefault(question.sha256, (row["split"], number))
        questions.append(question)
    shares = split or SplitConfig()
    # Only now: a row at the end of the file may have named the split of a video at its beginning.
    names = {sha256: named[sha256][0] if sha256 in named else split_of(sha256, shares) for sha256 in videos.hashes()}
    questions = [replace(question, split=names[question.sha256]) for question in questions]
    return questions, sorted(rejected, key=lambda error: error.row)


def split_of(sha256: str, shares: SplitConfig) -> str:
    """The split of a video, decided by its bytes alone: the same in every build, whatever else is in the folder."""
    # Hashed again: the file's own hash also orders and names things, and must not be correlated with the split.
    point = int(hashlib.sha256(f"split {sha256}".encode()).hexdigest()[:13], 16) / 16**13  # [0, 1), exact in a float
    if point < shares.test:
        return "test"
    return "validation" if point < shares.test + shares.validation else "train"


def question_id(sha256: str, start: float | None, end: float | None, question: str) -> str:
    """Id of a question that brings none: the same video part and text give the same id on every machine."""
    text = json.dumps([sha256, start, end, question], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------------------------------- rows


def _read_rows(file: str) -> tuple[list[tuple[int, dict]], list[RowError]]:
    """Numbered rows whose own fields are right, and the errors of the others. Text fields come back stripped."""
    try:
        data = Path(file).read_bytes()
    except FileNotFoundError:
        raise KitError(f"source.questions: {file}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise KitError(f"source.questions: {file}: cannot be read ({error})") from None
    rows, rejected = [], []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append((number, _row(line, file, number)))
        except RowError as error:
            rejected.append(error)
    if not rows and not rejected:
        raise KitError(f"source.questions: {file}: is empty; each line is one question as JSON")
    return rows, rejected


def _row(line: bytes, file: str, number: int) -> dict:
    def wrong(field: str | None, reason: str, kind: str) -> RowError:
        return RowError(file, number, field, reason, kind)

    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise wrong(None, "is not UTF-8 text", "bad_json") from None
    except json.JSONDecodeError as error:
        raise wrong(None, f"is not valid JSON ({error.msg} at column {error.colno})", "bad_json") from None
    except (RecursionError, ValueError):  # nested too deeply; a number of thousands of digits
        raise wrong(None, "is not JSON that can be read", "bad_json") from None
    if not isinstance(row, dict):
        raise wrong(None, 'must be a JSON object such as {"video": …, "question": …}', "bad_json")
    for name in row:
        # Other fields are a person's own and left alone, but a misspelt one must not be lost in silence.
        if name in FIELDS:
            continue
        hint = near(name, [known for known in FIELDS if known not in row], cutoff=0.8) if len(name) > 3 else ""
        if hint:
            raise wrong(one_line(name), f"is not a known field{hint}", "unknown_field")
        if name in ("start", "end") and row[name] is not None:
            raise wrong(name, "parts of a video are not read: cut the clip into a file of its own", "unsupported_field")
    clean: dict[str, Any] = {}
    for name in FIELDS:
        value = row.get(name)
        if name in ("answer", "id") and isinstance(value, (int, float)) and not isinstance(value, bool):
            value = json.dumps(value)  # {"answer": 3} means the text "3"
        if value is None or name == "answers":
            continue
        kind = {"question": "missing_question", "video": "missing_video"}.get(name, "invalid")
        clean[name] = _text(value, lambda reason, name=name, kind=kind: wrong(name, reason, kind))
    for name, kind in (("video", "missing_video"), ("question", "missing_question")):
        if name not in clean:
            raise wrong(name, "is missing", kind)
    if clean.get("split", "train") not in SPLITS:
        hint = near(clean["split"], SPLITS, cutoff=0.3)
        raise wrong("split", f"{clean['split']!r} is not one of {', '.join(SPLITS)}{hint}", "unknown_split")
    clean["answers"] = _answers(row.get("answers"), clean.pop("answer", None), wrong)
    return clean


def _text(value: Any, wrong) -> str:
    if not isinstance(value, str):
        raise wrong(f"must be text, not {type(value).__name__}")
    if not value.strip():
        raise wrong("is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell and no file can hold
        raise wrong("holds a character that is not valid Unicode") from None
    return value.strip()


def _answers(value: Any, answer: str | None, wrong) -> list[str]:
    """The answers with ``answer`` in front, each once."""
    if value is None:
        value = []
    if not isinstance(value, list):
        raise wrong("answers", "must be a list of texts", "invalid")
    texts = [] if answer is None else [answer]
    for entry in value:
        if isinstance(entry, (int, float)) and not isinstance(entry, bool):
            entry = json.dumps(entry)
        texts.append(_text(entry, lambda reason: wrong("answers", f"an entry {reason}", "invalid")))
    return list(dict.fromkeys(texts))


# ----------------------------------------------------------------------------------------------------------- videos


@dataclass(frozen=True)
class _Video:
    path: str
    name: str  # its path inside the videos folder
    sha256: str
    phash: str
    duration: float


class _Videos:
    """Facts about the folder's files, each found out once; a broken file stays broken for all its rows."""

    def __init__(self, folder: Path):
        self.folder, self.root = folder, folder.resolve()
        self._known: dict[str, _Video | MediaError] = {}

    def get(self, name: str) -> _Video | MediaError:
        if name not in self._known:
            try:
                self._known[name] = self._read(name)
            except MediaError as error:
                self._known[name] = error
        return self._known[name]

    def hashes(self) -> set[str]:
        return {video.sha256 for video in self._known.values() if isinstance(video, _Video)}

    def _read(self, name: str) -> _Video:
        path = self._inside(name)
        digest = file_sha256(path)
        info, frames = inspect_video(path, 1)
        inner = PurePosixPath(*path.relative_to(self.folder).parts)
        return _Video(str(path), str(inner), digest, perceptual_hash(frames.array[0]), info.duration)

    def _inside(self, name: str) -> Path:
        """The file's path, only if it lies inside the videos folder (a link that leads out does not)."""
        try:
            path = self.folder / Path(name)
            inside = path.resolve().is_relative_to(self.root) and ".." not in Path(name).parts
        except (OSError, ValueError, RuntimeError):  # a NUL character, links in a circle
            raise MediaError(f"{name!r}: is no name of a file", "missing_video") from None
        if not inside or Path(name).is_absolute():
            raise MediaError(
                f"{one_line(name)}: lies outside the videos folder {self.folder}; only files inside it are read",
                "outside_folder",
            )
        return path


def _question(row: dict, number: int, source: SourceConfig, videos: _Videos) -> Question:
    video = videos.get(row["video"])
    if isinstance(video, MediaError):
        raise RowError(source.questions, number, "video", str(video), video.kind)
    return Question(
        question_id=row.get("id") or question_id(video.sha256, None, None, row["question"]),
        video_id=video.sha256[:16],
        source=row.get("source", source.source),
        source_id=video.name,
        start=None,
        end=None,
        license=row.get("license", source.license),
        sha256=video.sha256,
        phash=video.phash,
        duration=video.duration,
        question=row["question"],
        answer=row["answers"][0] if row["answers"] else None,
        answers=row["answers"],
        question_type=row.get("question_type"),
        origin="given",
        split=row.get("split", ""),
        path=video.path,
        file=source.questions,
        row=number,
    )


def _check_split(question: Question, row: dict, named: dict[str, tuple[str, int]]) -> None:
    if "split" in row and question.sha256 in named and named[question.sha256][0] != row["split"]:
        split, first = named[question.sha256]
        raise RowError(
            question.file,
            question.row,
            "split",
            f"is '{row['split']}', but row {first} puts the same video into '{split}'; a video belongs to one split",
            "split_conflict",
        )


def _repetition(question: Question, earlier: Question) -> RowError:
    """Why a row whose id was there before is left out."""
    # A row that names no split says nothing against one that does; copies of one file are one video.
    place = {"row", "split", "path", "source_id"}
    new, old = asdict(question), asdict(earlier)
    differs = [name for name in new if name not in place and new[name] != old[name]]
    if not differs:
        reason, kind = f"repeats row {earlier.row}; left out", "duplicate_row"
    else:
        # A person wrote "video" and "answer"; the fields that follow from these are not worth naming.
        words = {"video_id": "video", "answers": "answer"}
        follow = ("sha256", "phash", "duration")
        other = " and ".join(list(dict.fromkeys(words.get(name, name) for name in differs if name not in follow))[:3])
        reason = f"'{one_line(question.question_id)}' already stands in row {earlier.row} with another {other}"
        kind = "duplicate_id"
    return RowError(question.file, question.row, "id", reason, kind)
