"""A tiny dataset folder and base checkpoint for the recipes' tests: toy clips, true answers against wrong ones."""

from __future__ import annotations

import json
from pathlib import Path

from datasets import Dataset

from dataset_builder.schema import FEATURES, assistant_message, user_message
from dataset_builder.toy import ANSWERS, generate_toy


def make_dataset(folder: Path, train: int = 12, held_out: int = 4, types=("colour", "count")) -> Path:
    """Write FOLDER with `preferences` (train) and `benchmark` (validation, test), videos embedded, as a build would."""
    world = folder.parent / f"{folder.name}-world"
    questions = generate_toy(world, 0, {"train": train, "validation": held_out, "test": held_out}, types)
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    tables: dict[str, list[dict]] = {}
    for row in rows:
        path = world / "videos" / row["video"]
        common = {
            "question_id": row["id"],
            "video_id": path.stem,
            "source": row["source"],
            "license": row["license"],
            "video": {"bytes": path.read_bytes(), "path": path.name},
            "question": row["question"],
        }
        if row["split"] != "train":
            extra = {"answers": [row["answer"]], "question_type": row["question_type"]}
            tables.setdefault(f"benchmark/{row['split']}", []).append({**common, **extra})
            continue
        wrong = next(answer for answer in ANSWERS[row["question_type"]] if answer != row["answer"])
        tables.setdefault("preferences/train", []).append(
            {
                **common,
                "response_id_chosen": row["id"] + "-c",
                "response_id_rejected": row["id"] + "-r",
                "answer": row["answer"],
                "prompt": [user_message(row["question"])],
                "chosen": [assistant_message(row["answer"])],
                "rejected": [assistant_message(wrong)],
                "model_chosen": "truth",
                "model_rejected": "wrong",
                "score_chosen": 1.0,
                "score_rejected": 0.0,
                "margin": 1.0,
            }
        )
    lines = ["---", "configs:"]
    for config in ("preferences", "benchmark"):
        lines += [f"- config_name: {config}", "  data_files:"]
        for name in [n for n in tables if n.startswith(config)]:
            split = name.split("/")[1]
            (folder / config).mkdir(parents=True, exist_ok=True)
            target = folder / config / f"{split}-00000-of-00001.parquet"
            Dataset.from_list(tables[name], features=FEATURES[config]).to_parquet(target)
            lines += [f"  - split: {split}", f"    path: {config}/{split}-*.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder
