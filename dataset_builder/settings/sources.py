"""Settings of the sources: where videos and questions come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dataset_builder.settings.zoo import Member

# What a row may say, under the kit's names.
COLUMNS = ("video", "question", "answer", "answers", "license", "id", "question_type", "split", "source")


def _check_columns(columns: dict[str, str]) -> None:
    for name in columns:
        if name not in COLUMNS:
            raise ValueError(f"columns: {name!r} is not a name of the kit's own ({', '.join(COLUMNS)})")


def _check_fps(fps: float) -> None:
    if fps <= 0:
        raise ValueError("fps must be above 0")


@dataclass(frozen=True)
class FolderSource:
    """A folder of videos and a JSONL, CSV, TSV or Parquet file of questions.

    Attributes:
        videos: folder of video files and frame folders.
        questions: the file; one row is one question.
        columns: the file's own column names, by the kit's (`{question: prompt, answer: label}`).
        source: name of the source, for rows without their own.
        license: licence of the videos, for rows without their own (an SPDX name such as `cc-by-4.0`); null takes what
            `licenses.yaml` says of a well-known source.
        redistribute: whether the licence allows the dataset to contain the videos' bytes; null as for `license`.
        fps: frames per second of frame folders.
    """

    kind: Literal["folder"]
    videos: str
    questions: str
    columns: dict[str, str] = field(default_factory=dict)
    source: str = "own"
    license: str | None = None
    redistribute: bool | None = None
    fps: float = 2.0

    def __post_init__(self):
        _check_columns(self.columns)
        _check_fps(self.fps)


@dataclass(frozen=True)
class HubSource:
    """A dataset on the Hub or in a folder, with a column mapping.

    Attributes:
        dataset: a Hub id, or a folder or file that `load_dataset` reads.
        columns: the dataset's column names, by the kit's; `video` and `question` are needed. A video column holds a
            `Video`, or the name of a file or frame folder in `videos`.
        config: its config.
        split: its split.
        revision: commit of a Hub dataset.
        videos: folder for video names; not needed when the rows carry the videos.
        source, license, redistribute, fps: as for a folder.
    """

    kind: Literal["hub"]
    dataset: str
    columns: dict[str, str]
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    videos: str | None = None
    source: str = "own"
    license: str | None = None
    redistribute: bool | None = None
    fps: float = 2.0

    def __post_init__(self):
        _check_columns(self.columns)
        _check_fps(self.fps)
        if missing := [name for name in ("video", "question") if name not in self.columns]:
            raise ValueError(f"columns: must say which column is the {' and the '.join(missing)}")


@dataclass(frozen=True)
class ShareGPTSource:
    """ShareGPTVideo / LLaVA-Hound rows (JSON or JSONL): SFT shape, or test shape with `caption`.

    Every human turn followed by an answer is a question. Attributes as for a folder.
    """

    kind: Literal["sharegpt"]
    videos: str
    questions: str
    source: str = "sharegptvideo"
    license: str | None = None
    redistribute: bool | None = None
    fps: float = 2.0

    def __post_init__(self):
        _check_fps(self.fps)


@dataclass(frozen=True)
class ActivityNetQASource:
    """ActivityNet-QA: a file of questions (`*_q.json`) and one of answers (`*_a.json`), joined by `question_id`."""

    kind: Literal["activitynet_qa"]
    videos: str
    questions: str
    answers: str
    source: str = "activitynet"
    license: str | None = None
    redistribute: bool | None = None
    fps: float = 2.0

    def __post_init__(self):
        _check_fps(self.fps)


@dataclass(frozen=True)
class VideoChatGPTSource:
    """Video-ChatGPT-style JSON: a list of `{"Q" or "question", "A" or "answer", "video_name"}`."""

    kind: Literal["video_chatgpt"]
    videos: str
    questions: str
    source: str = "activitynet"
    license: str | None = None
    redistribute: bool | None = None
    fps: float = 2.0

    def __post_init__(self):
        _check_fps(self.fps)


@dataclass(frozen=True)
class PreferenceSource:
    """Ready-made preference rows: they need neither zoo nor judges.

    Attributes:
        rows: a JSON, JSONL or Parquet file, or a dataset folder or Hub id.
        shape: of its rows; `auto` tells them apart by their keys.
        config, split, revision: of a dataset.
        videos: folder for video names; not needed when the rows carry the videos.
        source, license, redistribute, fps: as for a folder.
    """

    kind: Literal["preferences"]
    rows: str
    shape: Literal["auto", "hound", "ms_swift", "llama_factory", "trl"] = "auto"
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    videos: str | None = None
    source: str = "imported"
    license: str | None = None
    redistribute: bool | None = None
    fps: float = 2.0

    def __post_init__(self):
        _check_fps(self.fps)


@dataclass(frozen=True)
class GeneratedSource:
    """Videos without questions: a chat model asks them.

    Attributes:
        videos: folder of video files and frame folders.
        member: the model that writes the questions; its `max_new_tokens` is raised to 48 a question.
        per_video: questions wanted of each video.
        captions: JSONL of `{"video", "caption"}`; given, the questions come from captions and not from frames.
        source, license, redistribute, fps: as for a folder.
    """

    kind: Literal["generated"]
    videos: str
    member: Member
    per_video: int = 3
    captions: str | None = None
    source: str = "own"
    license: str | None = None
    redistribute: bool | None = None
    fps: float = 2.0

    def __post_init__(self):
        _check_fps(self.fps)
        if self.per_video < 1:
            raise ValueError("per_video must be at least 1")


Source = (
    FolderSource
    | HubSource
    | ShareGPTSource
    | ActivityNetQASource
    | VideoChatGPTSource
    | PreferenceSource
    | GeneratedSource
)
