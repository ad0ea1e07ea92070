"""The shapes that are one JSON object a line, with the videos as files beside it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from dataset_builder.export.pairs import Pair, VideoFiles
from dataset_builder.media import MediaError, probe
from dataset_builder.media.container import open_video

TAG = "<video>"


def ms_swift(pair: Pair, video: str, output: Path) -> dict:
    """A row of ms-swift's ``--rlhf_type dpo``, with absolute paths: it reads others from where it is started."""
    return {
        "messages": [
            {"role": "user", "content": f"{TAG}{pair.question}"},
            {"role": "assistant", "content": pair.chosen},
        ],
        "rejected_response": pair.rejected,
        "videos": [str(output / video)],
    }


def llama_factory(pair: Pair, video: str, output: Path) -> dict:
    """A row of LLaMA-Factory's ranking data in its ``sharegpt`` formatting; paths count from ``dataset_dir``."""
    return {
        "conversations": [{"from": "human", "value": f"{TAG}{pair.question}"}],
        "chosen": {"from": "gpt", "value": pair.chosen},
        "rejected": {"from": "gpt", "value": pair.rejected},
        "videos": [video],
    }


def hound(pair: Pair, video: str, output: Path) -> dict:
    """A row as in LLaVA-Hound's ``sft_dpo_17k.jsonl``; the video's path counts from its ``video_folder``."""
    return {
        "id": pair.id,
        "video": video,
        "prompt": f"{TAG}\n{pair.question}",
        "chosen": pair.chosen,
        "rejected": pair.rejected,
    }


ROWS: dict[str, Callable[[Pair, str, Path], dict]] = {
    "ms_swift": ms_swift,
    "llama_factory": llama_factory,
    "hound": hound,
}


# What a person has to know of videos that a trainer shows wrongly without a word, by reason.
NOTES = {
    "first_frames": "are in a file that does not say how many frames it holds (.mkv, .webm): LLaMA-Factory shows the "
    "first ones only; convert them to .mp4",
    "turned": "are stored turned (a phone's): LLaMA-Factory shows them on their side; encode them upright",
}


def readable_pairs(pairs: Iterable[Pair], shape: str, left_out: Counter, notes: Counter) -> Iterator[Pair]:
    """The pairs whose video the trainer can read; each video is looked at once.

    A trainer may pass over a video that it cannot read: ms-swift trains on another row in its place.

    Args:
        pairs: in any order.
        shape: one of :data:`ROWS`.
        left_out: counts the pairs that are not yielded, by reason.
        notes: counts videos, by reason of :data:`NOTES`.
    """
    known: dict[str, str | None] = {}
    for pair in pairs:
        if pair.video_id not in known:
            known[pair.video_id] = _unreadable(pair.video, shape, notes)
        reason = known[pair.video_id]
        if reason is None:
            yield pair
        else:
            left_out[reason] += 1


def _unreadable(video: bytes | str, shape: str, notes: Counter) -> str | None:
    """Why a trainer cannot read a video; counts what it reads but shows wrongly."""
    try:
        info = probe(video)
        if shape == "ms_swift" and info.frames < 2:
            return "one_frame"
        if shape == "llama_factory":
            with open_video(video) as opened:
                notes["first_frames"] += not opened.stream.frames
                notes["turned"] += (opened.stream.width, opened.stream.height) != (info.width, info.height)
    except MediaError:
        return "broken_video"
    return None


def write_jsonl(
    pairs: Iterable[Pair], shape: str, folder: Path, output: Path, split: str, name: str
) -> tuple[int, int]:
    """Write ``SPLIT.jsonl`` and ``videos/``.

    Args:
        pairs: what to write.
        shape: one of :data:`ROWS`.
        folder: where to write.
        output: where the folder will stand in the end.
        split: of the dataset.
        name: of the dataset, for LLaMA-Factory's ``dataset_info.json``.

    Returns:
        (rows, videos).
    """
    videos, rows = VideoFiles(folder), 0
    with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as stream:
        for pair in pairs:
            row = ROWS[shape](pair, videos.put(pair), output)
            stream.write(_line(row))
            rows += 1
    if shape == "llama_factory":
        info = dataset_info(name, split)
        (folder / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return rows, videos.count


def _line(row: dict) -> str:
    """One line of JSON; characters that some readers take for the end of a line are escaped."""
    text = json.dumps(row, ensure_ascii=False)
    for character in ("\x85", "\u2028", "\u2029"):
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text + "\n"


def dataset_info(name: str, split: str) -> dict:
    """LLaMA-Factory's ``dataset_info.json`` with the entry of this export."""
    key = re.sub(r"[^a-z0-9]+", "_", f"{name}_{split}".lower()).strip("_")
    return {
        key: {
            "file_name": f"{split}.jsonl",
            "formatting": "sharegpt",
            "ranking": True,
            "columns": {
                "messages": "conversations",
                "chosen": "chosen",
                "rejected": "rejected",
                "videos": "videos",
            },
        }
    }
