"""Runs in LLaMA-Factory's environment: reads the rows as `llamafactory-cli train` does and writes what they become.

    python peer_check_llama_factory.py OUT.json DPO.yaml

Imports nothing but what LLaMA-Factory needs, and `peer_check_text.py` beside it.
"""

import json
import sys
from pathlib import Path

from llamafactory.data import PairwiseDataCollatorWithPadding, get_dataset, get_template_and_fix_tokenizer, loader
from llamafactory.data.mm_plugin import MMPluginMixin
from llamafactory.hparams import get_train_args, read_args
from llamafactory.model import load_tokenizer
from peer_check_text import row_by_row, side
from transformers import AutoConfig


def main() -> None:
    """Load and tokenize with LLaMA-Factory's own functions, then collate each kept row by itself.

    One row that it cannot take ends its loading, as it would end a training run.
    """
    target, sys.argv = Path(sys.argv[1]), sys.argv[1:]
    model_args, data_args, training_args, _, _ = get_train_args(read_args())
    read, align = [], loader.align_dataset

    def counted(dataset, *arguments):
        read.append(len(dataset))
        return align(dataset, *arguments)

    loader.align_dataset = counted
    frames, choose = {}, MMPluginMixin._get_video_sample_indices

    def watched(self, stream, **options):
        indices = choose(self, stream, **options)
        frames[stream.container.name] = [int(index) for index in indices]
        return indices

    MMPluginMixin._get_video_sample_indices = watched
    parts = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(parts["tokenizer"], data_args)
    kept = get_dataset(template, model_args, data_args, training_args, stage="rm", **parts)["train_dataset"]
    collate = PairwiseDataCollatorWithPadding(template=template, model=None, pad_to_multiple_of=1, **parts)
    video_token = AutoConfig.from_pretrained(model_args.model_name_or_path).video_token_id

    def sides(row) -> dict:
        grids, found = collate([row]).get("video_grid_thw"), {}  # read from the frames: chosen's clip, then rejected's
        for position, name in enumerate(("chosen", "rejected")):
            grid = None if grids is None else grids[position]
            ids, labels = row[f"{name}_input_ids"], row[f"{name}_labels"]
            found[name] = side(parts["tokenizer"], ids, labels, video_token, grid)
        return found

    target.write_text(json.dumps({"read": read[0], "rows": row_by_row(kept, sides, frames)}))


if __name__ == "__main__":
    main()
