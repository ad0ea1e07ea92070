"""What pairs are made from: a split's questions, their clips, the zoo's stored answers, and the verdicts so far."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from dataset_builder.errors import KitError
from dataset_builder.judges import Judge, judge_values
from dataset_builder.loading import dataset_folder, load_config, split_files, stream_batches
from dataset_builder.media import Frames, sample_frames
from dataset_builder.schema import FEATURES, assistant_message, user_message
from dataset_builder.selection.pairs import EXCLUDING_FLAGS
from eval.runner import FramesCache, MediaIndex, video_source

QUESTION_COLUMNS = ["question_id", "video_id", "question", "answer", "answers"]
RESPONSE_COLUMNS = ["response_id", "question_id", "model", "response", "flags", "scores"]
ROW_COLUMNS = (
    *("question_id", "response_id_chosen", "response_id_rejected", "video_id", "video", "question", "answer"),
    *("prompt", "chosen", "rejected", "model_chosen", "model_rejected", "score_chosen", "score_rejected", "margin"),
)
FRAMES_BYTES = 2 << 30  # of decoded frames that are kept

Value = float | None  # what one judge says of one answer, 0 to 1; None where it could not say


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a split; ``answers`` are its references."""

    question_id: str
    video_id: str
    question: str
    answer: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a zoo member or of the model that is trained.

    Attributes:
        response_id: as in the ``responses`` config.
        model: who said it.
        text: what was said.
        malformed: it is empty, cut or a refusal; such an answer is never chosen.
        own: it comes from the model that is trained.
        values: what the stored judges say of it, by judge name.
        judged_by: (revision, settings hash) of these judges, by name.
    """

    response_id: str
    model: str
    text: str
    malformed: bool
    own: bool
    values: dict[str, Value]
    judged_by: dict[str, tuple[str, str]]


class Pool:
    """The questions of one split whose clip can be had, with their clips and the zoo's answers.

    Args:
        dataset: a dataset folder or a Hub id.
        split: such as ``train``.
        media: a person's own copies, for questions without a video in the dataset.

    Raises:
        KitError: the dataset has no such split, is no whole dataset, or no question's clip can be had.
    """

    def __init__(self, dataset: str, split: str, media: MediaIndex | None = None):
        self.dataset, self.split = str(dataset), split
        parts = [f"{config}/{split}-*.parquet" for config in ("questions", "responses")]
        folder = dataset_folder(dataset, *parts)
        self.clips = Clips(self.dataset, split, media)
        self.questions: dict[str, Question] = {}
        seen = 0
        for row in _rows(folder, "questions", split, QUESTION_COLUMNS):
            seen += 1
            if self.clips.has(row["video_id"]):
                references = tuple(row.pop("answers") or ())
                self.questions[row["question_id"]] = Question(**row, answers=references)
        if not self.questions:
            raise KitError(
                f"{dataset}: none of the {seen} questions of split '{split}' has a video in 'preferences'; give your "
                "own copies with --media WORK/media.json"
            )
        self.left_out = seen - len(self.questions)
        self.zoo: dict[str, list[Answer]] = {}
        self.stored_judges: set[str] = set()
        # A dataset may have no zoo (imported pairs); the model's own answers can still be compared with each other.
        has_zoo = bool(list((folder / "responses").glob(f"{split}-*.parquet")))
        for row in _rows(folder, "responses", split, RESPONSE_COLUMNS) if has_zoo else ():
            if row["question_id"] in self.questions:
                answer = _stored_answer(row)
                self.stored_judges.update(answer.values)
                self.zoo.setdefault(row["question_id"], []).append(answer)

    def rows(self, pairs: Sequence[dict[str, Any]]) -> datasets.Dataset:
        """Rows that training reads, as ``recipes.workbench.load_preferences`` gives them.

        The video column is made of views of the dataset's own (memory-mapped) table: no video is copied.

        Args:
            pairs: ``{question_id, response_id_chosen, response_id_rejected, text_chosen, text_rejected, model_chosen,
                model_rejected, score_chosen, score_rejected, margin}``.
        """
        features = datasets.Features({name: FEATURES["preferences"][name] for name in ROW_COLUMNS})
        features["video"] = datasets.Video(decode=False)
        kinds = features.arrow_schema
        found = [self.questions[pair["question_id"]] for pair in pairs]
        columns: dict[str, Any] = {name: [pair.get(name) for pair in pairs] for name in ROW_COLUMNS}
        for name in ("video_id", "question", "answer"):
            columns[name] = [getattr(question, name) for question in found]
        columns["prompt"] = [[user_message(question.question)] for question in found]
        for side in ("chosen", "rejected"):
            columns[side] = [[assistant_message(pair[f"text_{side}"])] for pair in pairs]
        arrays = {
            name: self.clips.column([q.video_id for q in found], kinds.field(name).type)
            if name == "video"
            else pa.array(columns[name], kinds.field(name).type)
            for name in ROW_COLUMNS
        }
        # Without a fingerprint of its own, datasets would hash all video bytes to make one.
        content = json.dumps([self.clips.fingerprint, [columns[name] for name in ROW_COLUMNS]], sort_keys=True)
        return datasets.Dataset(
            pa.table(arrays, schema=pa.schema([kinds.field(name) for name in ROW_COLUMNS])),
            info=datasets.DatasetInfo(features=features),
            fingerprint=hashlib.sha256(content.encode()).hexdigest()[:16],
        )


class Clips:
    """The clips behind a split's pairs, each known by the first row that shows it; decoded once.

    Args:
        dataset: a dataset folder or a Hub id.
        split: of ``preferences``; may be missing when there is ``media``.
        media: a person's own copies.
    """

    def __init__(self, dataset: str, split: str, media: MediaIndex | None = None):
        self.media, self.fingerprint = media, "no preferences"
        self._row: dict[str, int] = {}
        self._frames = FramesCache(FRAMES_BYTES)
        self._column = None
        try:
            table = load_config(dataset, "preferences", split, ("video_id", "video"))
        except KitError:
            if media is None:
                raise
            return
        self.fingerprint = table._fingerprint
        self._column = table.data.column("video")
        ids = table.data.column("video_id").to_pylist()
        # Looks at the validity bits only, not at the bytes.
        embedded = pc.is_valid(pc.struct_field(self._column, "bytes")).to_pylist()
        paths = pc.struct_field(self._column, "path").to_pylist()
        for index, (video_id, inside, path) in enumerate(zip(ids, embedded, paths, strict=True)):
            if video_id not in self._row and (inside or (path and os.path.exists(path))):
                self._row[video_id] = index

    def has(self, video_id: str) -> bool:
        """Whether the clip can be had, from the dataset or from the person's own copies (verified by hash)."""
        return video_id in self._row or (self.media is not None and self.media.find(video_id) is not None)

    def frames(self, video_id: str, num_frames: int) -> Frames | KitError:
        """Evenly spaced frames of a clip, or why there are none; one object a clip, as long as the cache holds it."""
        key = (video_id, num_frames)
        if key not in self._frames:
            row = self._row.get(video_id)
            video = None if row is None else self._column[row].as_py()
            try:
                self._frames[key] = sample_frames(video_source(video, video_id, self.media), num_frames)
            except KitError as error:
                return error
        return self._frames[key]

    def column(self, video_ids: Iterable[str], kind: pa.DataType) -> pa.ChunkedArray:
        """The ``video`` column of rows about these clips, without a copy; null for clips that only ``media`` has."""
        chunks = []
        for video_id in video_ids:
            row = self._row.get(video_id)
            chunks += [pa.nulls(1, kind)] if row is None else self._column.slice(row, 1).chunks
        return pa.chunked_array([chunk if chunk.type == kind else chunk.cast(kind) for chunk in chunks], kind)


class VerdictMemory:
    """What judges said of an answer's text: a judge is deterministic, so each is asked once about one text.

    A verdict is kept with the judge's revision and settings hash; those of another judge by the same name do not count.
    """

    def __init__(self):
        self._known: dict[tuple[str, str, str, str, str], Value] = {}
        self._asked: list[tuple[str, str, str, str, str]] = []
        self._lent: set[tuple[str, str, str, str, str]] = set()

    @staticmethod
    def _key(judge: Judge, question_id: str, text: str) -> tuple[str, str, str, str, str]:
        return (judge.name, judge.revision, judge.settings_hash, question_id, text)

    def lend(self, judge: Judge, question_id: str, answer: Answer) -> bool:
        """Take over a stored verdict; False when the dataset holds none of exactly this judge."""
        if answer.judged_by.get(judge.name) != (judge.revision, judge.settings_hash):
            return False
        key = self._key(judge, question_id, answer.text)
        self._known.setdefault(key, answer.values[judge.name])
        self._lent.add(key)
        return True

    def lent(self, judge: Judge, question_id: str, text: str) -> bool:
        """Whether the dataset held the verdict."""
        return self._key(judge, question_id, text) in self._lent

    def knows(self, judge: Judge, question_id: str, text: str) -> bool:
        """Whether the judge need not be asked (also when all it said is that it could not say)."""
        return self._key(judge, question_id, text) in self._known

    def get(self, judge: Judge, question_id: str, text: str) -> Value:
        """The known verdict."""
        return self._known[self._key(judge, question_id, text)]

    def put(self, judge: Judge, question_id: str, text: str, value: Value) -> None:
        """Keep a verdict that was asked for."""
        key = self._key(judge, question_id, text)
        self._known[key] = value
        self._asked.append(key)

    def save(self, path: str | Path) -> None:
        """Write the verdicts that were asked for (not those that the dataset holds); whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.{os.getpid()}")
        new.write_text(json.dumps([[*key, self._known[key]] for key in self._asked]) + "\n", encoding="utf-8")
        new.replace(path)

    def load(self, path: str | Path) -> None:
        """Take over what :meth:`save` wrote.

        Raises:
            KitError: the file is damaged or something else.
        """
        try:
            rows = json.loads(Path(path).read_text(encoding="utf-8"))
            for *key, value in rows:
                name, revision, settings, question_id, text = key
                if (name, revision, settings, question_id, text) not in self._known:
                    self._asked.append((name, revision, settings, question_id, text))
                self._known[name, revision, settings, question_id, text] = value
        except (OSError, ValueError, TypeError) as error:
            raise KitError(f"{path}: is not a file of verdicts ({error}); delete it and they are asked again") from None


def _rows(folder: Path, config: str, split: str, columns: list[str]) -> Iterable[dict[str, Any]]:
    files = split_files(folder, config).get(split)
    if not files:
        raise KitError(f"{folder}: config '{config}' has no split '{split}'")
    for batch in stream_batches(files, columns):
        yield from batch.to_pylist()


def _stored_answer(row: dict[str, Any]) -> Answer:
    scores = row["scores"] or []
    return Answer(
        response_id=row["response_id"],
        model=row["model"],
        text=row["response"],
        malformed=not EXCLUDING_FLAGS.isdisjoint(row["flags"] or ()),
        own=False,
        values=judge_values(scores),
        judged_by={score["judge"]: (score["judge_revision"], score["settings_hash"]) for score in scores},
    )
