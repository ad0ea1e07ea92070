"""The shapes that are one JSON object a line, with the videos as files beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from dataset_builder.export.pairs import Pair, VideoFiles

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
