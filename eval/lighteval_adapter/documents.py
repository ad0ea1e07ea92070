"""From a benchmark to LightEval's documents: task configurations, rows, and frames that are decoded when looked at."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lighteval.metrics.utils.metric_utils import Metric
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc

from dataset_builder.errors import KitError
from dataset_builder.media import Frames, file_sha256
from eval.benchmarks import Benchmark, read_benchmark
from eval.fingerprint import selection_judges
from eval.lighteval_adapter.state import RUN
from eval.results import benchmark_fingerprint
from eval.runner import MediaIndex, frames_of, shared, video_source
from eval.settings import DATA_VARIABLE, SETTINGS_VARIABLE, cache_folder, load_settings, task_data

SPLIT = "test"
_LINES = 20  # rows left out that are shown; more would hide what matters


@dataclass
class VideoTaskConfig(LightevalTaskConfig):
    """A task on a benchmark; ``hf_repo`` is a folder, a question file or a Hub id, or "" if nothing says.

    Attributes:
        benchmark: what it reads.
        whole: whether a dataset of this kit is taken whole, whatever its rows' sources.
        limit, subset, blind: of the settings; here because saved results list a task's fields.
    """

    benchmark: Benchmark | None = None
    whole: bool = False
    limit: int | None = None
    subset: list[str] = field(default_factory=list)
    blind: bool = False


def video_task(benchmark: Benchmark, metric: Metric) -> VideoTaskConfig:
    """The task that evaluates a benchmark, under the settings of this process."""
    settings = load_settings()
    data, whole = task_data(benchmark.name, benchmark.default)
    return VideoTaskConfig(
        name=benchmark.name,
        prompt_function=video_doc,
        hf_repo=data,
        hf_subset="benchmark",
        hf_avail_splits=[SPLIT],
        evaluation_splits=[SPLIT],
        few_shots_split=None,
        generation_size=settings.max_new_tokens,
        metrics=[metric],
        version=benchmark.version,
        benchmark=benchmark,
        whole=whole,
        limit=settings.limit,
        subset=list(settings.subset),
        blind=settings.blind,
    )


def load_task_rows(config: VideoTaskConfig) -> dict[str, Sequence[Mapping[str, Any]]]:
    """The task's rows by split, their videos undecoded; what cannot be used is said on stderr.

    Raises:
        KitError: nothing says where the data is, it cannot be read, or no row is left.
    """
    settings = load_settings()
    if settings.trained_on:
        selection_judges(settings.trained_on)  # better a complaint now than after the answers
    if not config.hf_repo:
        raise KitError(
            f"{config.name}: nothing says where its data is: set {DATA_VARIABLE}, or `data: {{{config.name}: FOLDER}}` "
            f"in the YAML named by {SETTINGS_VARIABLE}; eval/benchmarks/{config.name}.py says what it may be"
        )
    found = read_benchmark(
        config.benchmark,
        config.hf_repo,
        cache_folder() / "benchmarks",
        SPLIT,
        whole=config.whole,
        subset=config.subset,
        limit=config.limit,
        progress=True,
    )
    for other in found.others:
        print(f"{config.name}: reads {found.place}, not {other}; name a file under `data:` to choose", file=sys.stderr)
    for error in found.left_out[:_LINES]:
        print(f"left out: {error}", file=sys.stderr)
    if found.left_out:
        more = len(found.left_out) - _LINES
        shown = f" (the first {_LINES} are shown)" if more > 0 else ""
        count = len(found.left_out) + len(found.rows)
        print(f"{config.name}: {len(found.left_out)} of {count} rows are left out{shown}", file=sys.stderr)
    RUN.left_out[config.name] = len(found.left_out)
    RUN.fingerprints[config.name] = content_fingerprint(found.rows)
    return {SPLIT: found.rows}


def content_fingerprint(rows: Sequence[Mapping[str, Any]]) -> str:
    """Hash over questions, references, captions and videos, in order: LightEval caches answers by row number."""
    digest, texts = hashlib.sha256(), []
    for row in rows:
        texts.append((row["question_id"], row["video_id"], row["question"], row["answers"] or ()))
        digest.update(json.dumps([row["question_id"], row.get("caption"), _video_hash(row)]).encode())
    digest.update(benchmark_fingerprint(texts).encode())
    return digest.hexdigest()[:16]


def _video_hash(row: Mapping[str, Any]) -> str | None:
    """Of the video's content; None where the row holds none (an attached copy is checked against the video's id)."""
    if row.get("sha256"):
        return row["sha256"]
    video = row["video"] or {}
    if video.get("bytes"):
        return hashlib.sha256(video["bytes"]).hexdigest()
    there = video.get("path") and os.path.exists(video["path"])
    return file_sha256(video["path"]) if there else None


class VideoFrames(list):
    """A document's frames as PIL images, decoded when they are first looked at.

    LightEval builds all documents before it answers the first one; holding every frame of a benchmark would not fit.

    Args:
        images: none, usually.
        video: path or content.
        num_frames: how many a model sees.
        blind: the list stays empty, so a model sees nothing; :meth:`frames` still gives them to judges.
    """

    def __init__(
        self, images: Sequence = (), video: str | bytes | None = None, num_frames: int = 8, blind: bool = False
    ):
        super().__init__(images)
        self.video, self.num_frames, self.blind = video, num_frames, blind

    def frames(self, num_frames: int | None = None) -> Frames:
        """The sampled frames with their time stamps, for models and judges that take video natively.

        Raises:
            KitError: if the video is missing or cannot be decoded.
        """
        return frames_of(self.video, num_frames or self.num_frames, RUN.frames)

    def load(self) -> None:
        """Fill the list with PIL images."""
        if not self.blind and not list.__len__(self) and self.video is not None:
            from PIL import Image

            self.extend(Image.fromarray(frame) for frame in self.frames().array)

    def release(self) -> None:
        """Forget the images; they are decoded again when needed."""
        if self.video is not None:
            self.clear()

    def __iter__(self):
        self.load()
        return super().__iter__()

    def __len__(self) -> int:
        self.load()
        return super().__len__()

    def __getitem__(self, index):
        self.load()
        return super().__getitem__(index)


def video_doc(row: dict, task_name: str) -> Doc:
    """The prompt function of every task here: the question, its references, and the frames as images.

    Args:
        row: of a benchmark, its video undecoded.
        task_name: set by LightEval.
    """
    settings = load_settings()
    if settings.media and (RUN.media is None or RUN.media.path != settings.media):
        RUN.media = MediaIndex(settings.media)
    media = RUN.media if settings.media else None
    answers = list(row["answers"] or ())
    RUN.video = shared(video_source(row["video"], row["video_id"], media), RUN.video)
    return Doc(
        task_name=task_name,
        query=row["question"],
        choices=answers,
        gold_index=list(range(len(answers))),
        images=VideoFrames(video=RUN.video, num_frames=settings.num_frames, blind=settings.blind),
        specific={key: row.get(key) or "" for key in ("question_id", "video_id", "question_type", "caption")},
    )


def doc_frames(doc: Doc, num_frames: int) -> Frames | None:
    """What a model that takes video is shown of a document: the kit's frames, or any other task's images at one per
    second; None if there is nothing to see."""
    if isinstance(doc.images, VideoFrames):
        return None if doc.images.blind else doc.images.frames(num_frames)
    if not doc.images:
        return None
    import numpy as np

    array = np.stack([np.asarray(image.convert("RGB")) for image in doc.images])  # [T, H, W, 3]
    count = len(array)
    return Frames(array, [float(t) for t in range(count)], 1.0, list(range(count)), count, float(count))
