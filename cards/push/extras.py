"""Files that only the Hub wants: the benchmark's ``eval.yaml``, results in ``.eval_results``, training arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cards.push.copies import split_card
from cards.run_folder import Run
from cards.stage_log import read_json

EVAL_YAML = "eval.yaml"
TRAINING_ARGS = "training_args.yaml"
TASK = "mmaip_v"  # as `eval/tasks.py` calls it
# Of each round: what it was told, and what it logged, which no row can confirm.
_LOGGED = ("round", "steps", "learning_rate", "alpha", "validation_accuracy", "distance", "alpha_curve")
EVAL_RESULTS = ".eval_results/mmaip-v.yaml"


def eval_yaml(run: Run) -> bytes | None:
    """``eval.yaml``: the test split of the ``benchmark`` config as a benchmark of the Hub; None where there is none.

    No ``evaluation_framework`` is named: the Hub knows a closed list of them, in which LightEval is not
    (https://huggingface.co/docs/hub/eval-results).
    """
    if not any((run.dataset / "benchmark").glob("test-*.parquet")):
        return None
    card = run.dataset / "README.md"
    data, _ = split_card(card.read_text(encoding="utf-8")) if card.is_file() else ({}, "")
    rows = _rows(data, "benchmark", "test")
    content = {
        "name": data.get("pretty_name") or run.dataset.name,
        "description": (f"{rows:,} held-out questions about videos with reference answers. " if rows else "")
        + "The value is accuracy between 0 and 1.",
        "tasks": [{"id": TASK, "config": "benchmark", "split": "test"}],
    }
    return _yaml(content)


def eval_results(run: Run, dataset_id: str, version: str | None) -> bytes | None:
    """``.eval_results/*.yaml``: the released arm's accuracy on test; None where it was not measured.

    Args:
        run: the run.
        dataset_id: Hub id of the dataset.
        version: its tag; None where it is not released along.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    measured = run.arms.get(run.release_arm, {})
    if measured.get("accuracy") is None:
        return None
    judge = run.results(run.release_arm).get("judge") or {}
    notes = [f"test split of {dataset_id}" + (f" at {version}" if version else "")]
    if judge.get("name"):
        mark = judge.get("fingerprint") or judge.get("settings_hash")
        notes.append(f"judge {judge['name']}" + (f" ({mark})" if mark else ""))
    if measured.get("ci95"):
        low, high = measured["ci95"]
        notes.append(f"95 % interval {low:.4f} to {high:.4f}, clustered by video")
    entry = EvalResultEntry(
        dataset_id=dataset_id, task_id=TASK, value=round(measured["accuracy"], 4), notes="; ".join(notes)
    )
    return _yaml(eval_result_entries_to_yaml([entry]))


def training_args(run: Run, dataset_id: str, base: str | None) -> bytes:
    """``training_args.yaml``: how the released arm was trained; models on this machine by their names only."""
    arm = run.release_arm
    config = read_json(run.folder / "arms" / ".work" / "job.json", {}).get("config", {})
    content: dict[str, Any] = {
        "arm": arm,
        "base": base or _name(config.get("base")),
        "dataset": dataset_id,
        "dataset_fingerprint": run.info.get("dataset_fingerprint"),
        "rounds": [
            {**{key: each.get(key) for key in _LOGGED}, "pairs": (each.get("pairs") or {}).get("pairs")}
            for each in run.rounds(arm)
        ],
    }
    if run.clean_accuracy:  # of a base that the run itself made
        content["base_before_bias"] = run.clean_accuracy
    # Of all arms together; what the released one took of it stands above.
    arguments = {key: _plain(value) for key, value in config.items() if key not in ("base", "dataset")}
    if arguments:
        content["arguments"] = arguments
    return _yaml(content)


def _plain(value: Any) -> Any:
    """Settings without what holds on one machine only: folders cut to their names, endpoints to the fact of one."""
    if isinstance(value, dict):
        return {key: bool(item) if key == "endpoint" else _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return _name(value) if isinstance(value, str) else value


def _name(value: str | None) -> str | None:
    """The last part of a path on this machine; anything else as it is."""
    if value and (value.startswith(("/", "./", "../", "~")) or value.count("/") > 1 or Path(value).exists()):
        return Path(value).name
    return value


def _rows(data: dict, config: str, split: str) -> int | None:
    """``num_examples`` that a dataset card tells of a split."""
    infos = data.get("dataset_info") or []
    for info in infos if isinstance(infos, list) else [infos]:
        if info.get("config_name") == config:
            return next(
                (each.get("num_examples") for each in info.get("splits", []) if each.get("name") == split), None
            )
    return None


def _yaml(content: Any) -> bytes:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100).encode()
