"""Runs in ms-swift's environment: reads the rows as `swift rlhf` does and writes what every one of them becomes.

    python peer_check_swift.py OUT.json ARGUMENTS OF swift rlhf…

Imports nothing but what ms-swift needs, and `peer_check_text.py` beside it.
"""

import json
import sys
from pathlib import Path

from peer_check_text import row_by_row, side
from qwen_vl_utils import vision_process
from swift.dataset.preprocessor import RowPreprocessor
from swift.pipelines.train.rlhf import SwiftRLHF


def watch_readers() -> dict[str, list[int]]:
    """Which frames of each clip are read from now on, by path."""
    frames: dict[str, list[int]] = {}

    def watched(reader):
        def read(wish):
            path = wish["video"]  # the reader puts the file's content here
            result = reader(wish)
            frames[path] = [int(index) for index in result[1]["frames_indices"]]
            return result

        return read

    backends = vision_process.VIDEO_READER_BACKENDS
    backends.update({name: watched(reader) for name, reader in backends.items()})
    return frames


def main() -> None:
    """Load, let ms-swift drop what it drops, then encode each kept row by itself.

    In training ms-swift replaces a row that cannot be encoded by another one; here it keeps its place and its error.
    """
    target, arguments = Path(sys.argv[1]), sys.argv[2:]
    read, call = [], RowPreprocessor.__call__

    def counted(self, dataset, **options):
        read.append(len(dataset))
        return call(self, dataset, **options)

    RowPreprocessor.__call__ = counted
    pipeline = SwiftRLHF(arguments)
    frames = watch_readers()
    kept, _ = pipeline._get_dataset()
    template, video_token = pipeline.template, pipeline.model.config.video_token_id

    def sides(row) -> dict:
        encoded, found = template.encode(row, return_length=True), {}
        for name in ("chosen", "rejected"):
            ids, labels = encoded[f"{name}_input_ids"], encoded[f"{name}_labels"]
            found[name] = side(template.tokenizer, ids, labels, video_token, encoded.get(f"{name}_video_grid_thw"))
        return found

    target.write_text(json.dumps({"read": read[0], "rows": row_by_row(kept, sides, frames)}))


if __name__ == "__main__":
    main()
