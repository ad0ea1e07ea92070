"""Ask a model every question of a benchmark and judge the answers: what arms, alpha search and cards all go through."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dataset_builder.errors import KitError
from dataset_builder.loading import load_config
from eval.fingerprint import judge_record
from eval.results import Results, benchmark_fingerprint, read_json
from eval.verdicts import judge_answers

if TYPE_CHECKING:  # the model and judge rooms import torch, which a command line should not wait for
    from dataset_builder.judges import Judge
    from dataset_builder.media import Frames
    from dataset_builder.models import Decoding, LocalChatModel

BATCH_SIZE = 64
VIDEO_ID_DIGITS = 16  # a video_id is so many first hex digits of the file's sha256
BENCHMARK_COLUMNS = ("question_id", "video_id", "question", "answers", "question_type", "video")


@dataclass(frozen=True)
class BenchmarkItem:
    """One question of a benchmark.

    Attributes:
        question_id: unique within the benchmark.
        video_id: the video it is about; statistics cluster by it.
        question: text.
        answers: reference answers, any of which is right; may be empty.
        question_type: kind of question, or "".
        video: path or file content; None if the dataset holds no video and none was attached.
        caption: what is known of the video in words, for judges that read it instead of looking; None without one.
    """

    question_id: str
    video_id: str
    question: str
    answers: tuple[str, ...]
    question_type: str
    video: str | bytes | None = field(repr=False)
    caption: str | None = None


class FramesCache(MutableMapping):
    """Decoded frames by video, shared by the models of a process; the oldest leave when ``max_bytes`` is reached."""

    def __init__(self, max_bytes: int = 2 << 30):
        self.max_bytes = max_bytes
        self._frames: OrderedDict = OrderedDict()
        self._bytes = 0

    def __getitem__(self, key):
        return self._frames[key]

    def __setitem__(self, key, frames: Frames) -> None:
        self.pop(key, None)
        self._frames[key] = frames
        self._bytes += frames.array.nbytes
        while self._bytes > self.max_bytes and len(self._frames) > 1:
            del self[next(iter(self._frames))]

    def __delitem__(self, key) -> None:
        self._bytes -= self._frames.pop(key).array.nbytes

    def __iter__(self):
        return iter(list(self._frames))

    def __len__(self) -> int:
        return len(self._frames)


def load_benchmark(
    dataset_folder: str | Path, split: str = "test", media: str | Path | None = None, limit: int | None = None
) -> list[BenchmarkItem]:
    """Read a split of the ``benchmark`` config of a dataset folder or Hub dataset.

    Args:
        dataset_folder: a folder made by ``python -m dataset_builder build``, or ``NAMESPACE/NAME`` on the Hub.
        split: ``validation`` or ``test``.
        media: ``media.json`` (sha256 → path) for datasets that hold no video; each file's hash is verified.
        limit: take the first rows only.

    Raises:
        KitError: if the dataset or split is missing, or an attached video does not match its hash.
    """
    rows = load_rows(dataset_folder, split, limit)
    attach = MediaIndex(media) if media else None
    items: list[BenchmarkItem] = []
    for row in rows:
        video = video_source(row["video"], row["video_id"], attach)
        items.append(
            BenchmarkItem(
                question_id=row["question_id"],
                video_id=row["video_id"],
                question=row["question"],
                answers=tuple(row["answers"] or ()),
                question_type=row["question_type"] or "",
                video=shared(video, items[-1].video if items else None),
                caption=row.get("caption"),
            )
        )
    return items


def load_rows(dataset: str | Path, split: str, limit: int | None = None):
    """The ``datasets.Dataset`` behind a benchmark split, its videos left undecoded.

    Raises:
        KitError: if there is no such dataset, config or split.
    """
    rows = load_config(dataset, "benchmark", split, BENCHMARK_COLUMNS)
    return rows if limit is None else rows.select(range(min(limit, len(rows))))


class MediaIndex:
    """A ``media.json`` written by a build: finds a person's own copy of a video by its sha256 and verifies it once."""

    def __init__(self, path: str | Path):
        content = read_json(path)
        if not isinstance(content, dict):
            raise KitError(f"{path}: expected an object that maps sha256 to a path")
        self.path, self._verified = str(path), {}
        self._paths = {digest[:VIDEO_ID_DIGITS]: (digest, str(found)) for digest, found in content.items()}

    def find(self, video_id: str) -> str | None:
        """The path of the video whose sha256 begins with ``video_id``; None if there is none.

        Raises:
            KitError: if the file is gone or its content has changed.
        """
        if video_id not in self._verified:
            known = self._paths.get(video_id[:VIDEO_ID_DIGITS])
            self._verified[video_id] = known and self._verify(*known)
        return self._verified[video_id]

    def _verify(self, digest: str, path: str) -> str:
        from dataset_builder.media import file_sha256

        if not Path(path).is_file():
            raise KitError(f"{self.path}: the video {path} is gone")
        if file_sha256(path) != digest:
            raise KitError(f"{self.path}: the video {path} has changed since the dataset was built (other sha256)")
        return path


def video_source(video: dict | None, video_id: str, attach: MediaIndex | None) -> str | bytes | None:
    """The bytes or path behind an undecoded ``Video`` value, or the attached copy if the dataset holds none."""
    if video and video.get("bytes"):
        return video["bytes"]
    if video and video.get("path") and os.path.exists(video["path"]):
        return video["path"]
    return attach.find(video_id) if attach else None


def shared(video: str | bytes | None, previous: str | bytes | None) -> str | bytes | None:
    """``previous`` if it is the same content: rows come sorted by video, so each clip is in memory only once."""
    return previous if video == previous else video


def frames_of(video: str | bytes | None, num_frames: int, cache: MutableMapping | None = None) -> Frames:
    """Sample a video's frames, or take them from ``cache``.

    Raises:
        KitError: if there is no video, or it cannot be decoded.
    """
    from dataset_builder.media import sample_frames

    if video is None:
        raise KitError("the dataset holds no video for this row; attach your own copies with media.json")
    key = (video_key(video), num_frames)
    if cache is not None and key in cache:
        return cache[key]
    frames = sample_frames(video, num_frames)
    if cache is not None:
        cache[key] = frames
    return frames


def evaluate(
    model: LocalChatModel,
    items: Sequence[BenchmarkItem],
    judge: Judge | None = None,
    decoding: Decoding | None = None,
    *,
    name: str | None = None,
    dataset: str = "",
    frames_cache: MutableMapping | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    blind: bool = False,
    on_batch: Callable[[int, int], None] | None = None,
) -> Results:
    """Answer every item with ``model`` and judge the answers.

    Args:
        model: the chat interface of the model room; it stays in whatever state it is in.
        items: the questions; keep questions of one video together, and each video is decoded once.
        judge: any judge of ``dataset_builder.judges``; the reference judge by default.
        decoding: greedy with 16 new tokens and 8 frames by default.
        name: what the run is called in tables; the model's name by default.
        dataset: where the items came from, for the record.
        frames_cache: pass one mapping to all models of a process to decode every video once.
        seed: for sampled decoding; greedy answers do not depend on it.
        batch_size: questions per batch.
        blind: show the model the question alone, which tells how much can be had without looking; the judge still sees
            the video.
        on_batch: called with (done, total) after each batch.

    Returns:
        One row per item in the order given. A video that cannot be read, a generation that failed or a judge that
        could not judge leaves ``correct`` None and says why in ``error``; such rows are no wrong answers.

    Raises:
        KitError: if there are no items.
    """
    from dataset_builder.judges import ReferenceJudge

    if not items:
        raise KitError("the benchmark is empty: there is nothing to evaluate")
    judge = judge or ReferenceJudge()
    decoding = decoding or greedy()
    cache = FramesCache() if frames_cache is None else frames_cache
    rows: list[dict] = []
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        rows += _evaluate_batch(model, batch, judge, decoding, cache, seed, batch_size, blind)
        if on_batch:
            on_batch(len(rows), len(items))
    return Results(
        name=name or model.name,
        model=model.name,
        model_revision=model.revision,
        dataset=str(dataset),
        dataset_fingerprint=benchmark_fingerprint((i.question_id, i.video_id, i.question, i.answers) for i in items),
        judge=judge_record(judge),
        decoding={**asdict(decoding), "seed": seed, "template_hash": model.template_hash, "blind": blind},
        rows=rows,
    )


def greedy(max_new_tokens: int = 16, num_frames: int = 8) -> Decoding:
    """Greedy decoding: the same model and questions give the same answers."""
    from dataset_builder.models import Decoding

    return Decoding(temperature=0.0, top_p=1.0, max_new_tokens=max_new_tokens, num_frames=num_frames)


def _evaluate_batch(model, batch, judge, decoding, cache, seed, batch_size, blind) -> list[dict]:
    from dataset_builder.judges import JudgeItem
    from dataset_builder.models import ChatRequest

    answers: list[str | KitError] = [""] * len(batch)
    requests, places = [], []
    for place, item in enumerate(batch):
        try:
            frames = None if blind else frames_of(item.video, decoding.num_frames, cache)
        except KitError as error:
            answers[place] = error
            continue
        requests.append(ChatRequest(question=item.question, frames=frames))
        places.append(place)
    replies = model.generate(requests, decoding, seed=seed, batch_size=batch_size) if requests else []
    for place, reply in zip(places, replies, strict=True):
        answers[place] = KitError(reply.error) if reply.error else reply.text
    judge_items = []
    for place, (item, answer) in enumerate(zip(batch, answers)):
        frames = None
        if judge.needs_frames and isinstance(answer, str):
            try:
                frames = frames_of(item.video, judge.num_frames, cache)
            except KitError as error:
                answers[place] = error
        response = answer if isinstance(answer, str) else ""
        judge_items.append(JudgeItem(item.question, list(item.answers), frames, response, caption=item.caption))
    verdicts = judge_answers(answers, judge_items, judge)
    return [
        {
            "question_id": item.question_id,
            "video_id": item.video_id,
            "question_type": item.question_type,
            "question": item.question,
            "answers": list(item.answers),
            "response": answer if isinstance(answer, str) else None,
            "caption": item.caption,
            **judged,
        }
        for item, answer, judged in zip(batch, answers, verdicts)
    ]


def video_key(video: str | bytes | None) -> str | tuple | None:
    """Tells videos apart by content (bytes) or by path, size and time (files): a rewritten file is decoded again."""
    if video is None:
        return None
    if isinstance(video, bytes):
        return hashlib.sha256(video).hexdigest()
    status = os.stat(video) if os.path.exists(video) else None
    return (os.path.abspath(video), status and status.st_size, status and status.st_mtime_ns)
