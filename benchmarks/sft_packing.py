"""SFT throughput with all questions of a clip in one sequence, against one sequence per question.

    python -m benchmarks.sft_packing

One training step (forward, backward, optimizer) on the same 32 toy clips with five questions each, one thread. The
figure is questions a second; the peer is the same recipe with `--pack false`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.common import interleaved, write_results

CLIPS = 32


def main() -> None:
    """Measure every tiny architecture."""
    import torch

    from dataset_builder.toy import TYPES, generate_toy
    from dataset_builder.toy_models import ARCHS, make_tiny
    from recipes.sft_data import SFTCollator, read_clips
    from recipes.video.encoding import ClipEncoder

    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        questions = generate_toy(folder, clips={"train": CLIPS})
        clips = read_clips(questions, Path(folder) / "videos")
        for arch in ARCHS:
            model, processor = make_tiny(arch)
            model.train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
            encoder = ClipEncoder(processor)

            def step(pack: bool, model=model, optimizer=optimizer, encoder=encoder) -> None:
                batch = SFTCollator(encoder, seed=0, pack=pack)(clips)
                model(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()

            ours, peer = interleaved(lambda: step(True), lambda: step(False))
            asked = CLIPS * len(TYPES)
            rows.append(
                {"case": arch, "ours": asked / ours, "peer": asked / peer, "ratio": peer / ours, "unit": "questions/s"}
            )
    write_results("sft_packing", rows)


if __name__ == "__main__":
    main()
