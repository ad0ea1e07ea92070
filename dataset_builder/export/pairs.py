"""What every shape starts from: the preference pairs of one split with their videos, and why some are left out."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dataset_builder.disassemble import VIDEO_ID_DIGITS, message_text
from dataset_builder.errors import KitError
from dataset_builder.loading import VIDEO_BATCH, stream_batches
from dataset_builder.media import MediaError, file_sha256

COLUMNS = [
    "question_id",
    "response_id_chosen",
    "response_id_rejected",
    "video_id",
    "answer",
    "prompt",
    "chosen",
    "rejected",
    "video",
]
# What a left-out row is told as, by reason.
REASONS = {
    "no_video": "the dataset does not hold their video: attach your own copies, or name them with --media",
    "wrong_copy": "the file that --media names for their video is gone or has another hash",
    "tag_in_text": "their text holds a tag such as <video>, which the trainer would take for a video",
    "special_token": "their text holds a special token such as <|im_end|>, which the trainer would take for one",
    "empty_answer": "an answer is empty",
    "same_answers": "both answers are the same",
    "broken_video": "their video cannot be decoded",
    "one_frame": "their video has one frame only, which ms-swift does not read",
}
_TAGS = re.compile(r"<(video|image|audio)>")  # what the trainers replace by media, wherever it stands
_SPECIAL = re.compile(r"<\|\w+\|>")  # tokenizers read it as one token wherever it stands
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")


@dataclass(frozen=True)
class Pair:
    """One preference pair.

    Attributes:
        id: unique within the dataset.
        question_id, video_id, answer: as in the dataset.
        question: text of the prompt.
        chosen, rejected: text of the answers.
        video: content of the video, or the path of a person's own copy (verified).
        suffix: ending of the video's file, such as ``.mp4``.
    """

    id: str
    question_id: str
    video_id: str
    question: str
    answer: str | None
    chosen: str
    rejected: str
    video: bytes | str
    suffix: str


class Media:
    """A person's own copies by video id, each verified once.

    Args:
        media: paths by sha256.
    """

    def __init__(self, media: dict[str, str]):
        self._paths = {digest[:VIDEO_ID_DIGITS]: (digest, path) for digest, path in media.items()}
        self._verified: dict[str, str | None] = {}

    def __contains__(self, video_id: str) -> bool:
        return video_id in self._paths

    def find(self, video_id: str) -> str | None:
        """The copy's path; None when it is gone or is another file by now."""
        if video_id not in self._verified:
            digest, path = self._paths[video_id]
            try:
                self._verified[video_id] = path if file_sha256(path) == digest else None
            except MediaError:
                self._verified[video_id] = None
        return self._verified[video_id]


def read_pairs(files: list[Path], media: Media, left_out: Counter, tags: bool) -> Iterator[Pair]:
    """The usable pairs of one split, in the dataset's order.

    Args:
        files: Parquet files of the split.
        media: copies for rows without video.
        left_out: counts the rows that are not yielded, by reason.
        tags: whether the shape marks videos by tags in the text.

    Raises:
        KitError: a file is damaged, or a row's ``video_id`` cannot be part of a file name.
    """
    for batch in stream_batches(files, COLUMNS, VIDEO_BATCH):
        for row in batch.to_pylist():
            video_id = row["video_id"]
            if not _NAME.fullmatch(video_id or ""):
                raise KitError(f"{files[0].parent}: video_id {video_id!r}: cannot be the name of a file")
            question, chosen, rejected = (message_text(row[name]) for name in ("prompt", "chosen", "rejected"))
            reason = _unusable(question, chosen, rejected, tags)
            video, name = _video(row["video"])
            if reason is None and video is None:
                reason = "no_video"
                if video_id in media:
                    video = name = media.find(video_id)
                    reason = "wrong_copy" if video is None else None
            if reason is not None:
                left_out[reason] += 1
                continue
            suffix = PurePosixPath(name or "").suffix.lower()
            yield Pair(
                id="-".join((row["question_id"], row["response_id_chosen"], row["response_id_rejected"])),
                question_id=row["question_id"],
                video_id=video_id,
                question=question,
                answer=row["answer"],
                chosen=chosen,
                rejected=rejected,
                video=video,
                suffix=suffix if _SUFFIX.fullmatch(suffix) else ".mp4",
            )


def _unusable(question: str, chosen: str, rejected: str, tags: bool) -> str | None:
    """Why the texts alone cannot be used. Trainers drop such rows without a word, or train on them wrongly."""
    if not chosen.strip() or not rejected.strip():
        return "empty_answer"
    if chosen == rejected:
        return "same_answers"
    texts = (question, chosen, rejected)
    if tags and any(map(_TAGS.search, texts)):
        return "tag_in_text"
    return "special_token" if any(map(_SPECIAL.search, texts)) else None


def _video(value: dict | None) -> tuple[bytes | str | None, str | None]:
    """(content or path, file name) of a ``Video`` value."""
    if not value:
        return None, None
    if value["bytes"]:
        return value["bytes"], value["path"]
    # A path without bytes comes from Dataset.to_parquet, which does not embed.
    return (value["path"], value["path"]) if value["path"] and os.path.isfile(value["path"]) else (None, None)


class VideoFiles:
    """Videos as files, ``videos/VIDEO_ID.EXT``, each written once.

    Args:
        folder: where ``videos`` is made.
    """

    def __init__(self, folder: Path):
        self.folder = folder / "videos"
        self.folder.mkdir(parents=True)
        self.count = 0

    def put(self, pair: Pair) -> str:
        """Write the pair's video unless it is there; returns its path inside the export, with forward slashes."""
        path = self.folder / f"{pair.video_id}{pair.suffix}"
        if not path.exists():
            self.count += 1
            if isinstance(pair.video, bytes):
                path.write_bytes(pair.video)
            else:
                import shutil

                shutil.copyfile(pair.video, path)
        return f"videos/{path.name}"
