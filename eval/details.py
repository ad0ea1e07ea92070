"""Reading what was saved: results of this kit, and the results and details files that LightEval writes."""

from __future__ import annotations

import json
from pathlib import Path

from dataset_builder.errors import KitError
from eval.results import READABLE, Results, benchmark_fingerprint, read_json

_HINT = "give a results JSON of this kit, or LightEval's results_*.json or details_*.parquet"


def load_results(path: str | Path) -> Results:
    """Read a results file, whoever wrote it.

    Args:
        path: JSON of ``Results.save``; ``results_DATE.json`` of LightEval, whose details lie in the ``details`` folder
            beside ``results`` (run with ``--save-details``); a ``details_*.parquet``; or a folder that holds exactly
            one of these results files, at any depth.

    Raises:
        KitError: if there is nothing to read, or the details hold no verdicts of this kit's metric.
    """
    path = Path(path)
    if path.is_dir():
        path = _only_file(path)
    if path.suffix == ".parquet":
        return _from_details(path, [path], {})
    content = read_json(path)
    if isinstance(content, dict) and content.get("format") in READABLE:
        return Results.from_dict(content, path)
    if isinstance(content, dict) and "config_general" in content:
        return _from_details(path, _details_beside(path), content["config_general"].get("model_config") or {})
    raise KitError(f"{path}: not a results file; {_HINT}")


def _only_file(folder: Path) -> Path:
    found = sorted(folder.rglob("results_*.json")) or sorted(folder.glob("*.json"))
    if len(found) != 1:
        named = ", ".join(str(f) for f in found[:3])
        raise KitError(f"{folder}: holds {len(found)} results files{': ' + named if found else ''}; name one of them")
    return found[0]


def _details_beside(results_file: Path) -> list[Path]:
    """``OUT/results/MODEL/results_DATE.json`` belongs to ``OUT/details/MODEL/DATE/details_TASK_DATE.parquet``."""
    date = results_file.stem.removeprefix("results_")
    for parent in results_file.resolve().parents:
        if parent.name == "results":
            model = results_file.resolve().parent.relative_to(parent)
            found = sorted((parent.parent / "details" / model / date).glob(f"details_*_{date}.parquet"))
            if found:
                return found
    raise KitError(f"{results_file}: its details were not saved; run LightEval again with --save-details")


def _from_details(path: Path, files: list[Path], model_config: dict) -> Results:
    import pyarrow.parquet as pq

    rows, judge, self_judged, revision = [], {}, None, model_config.get("model_revision", "")
    for file in files:
        try:
            table = pq.read_table(file, columns=["doc", "metric", "model_response"]).to_pylist()
        except (OSError, ValueError, KeyError) as error:
            raise KitError(f"{file}: not LightEval details ({str(error).splitlines()[0]})") from None
        for number, entry in enumerate(table, 1):
            verdict = (entry["metric"] or {}).get("accuracy")
            if not isinstance(verdict, dict) or "video_id" not in verdict:
                raise KitError(f"{file}: row {number}: field 'metric' holds no verdict of this kit's metric")
            texts = entry["model_response"].get("text") or [None]
            correct = verdict["correct"]
            rows.append(
                {
                    "question_id": verdict["question_id"],
                    "video_id": verdict["video_id"],
                    "question_type": verdict.get("question_type") or "",
                    "question": entry["doc"]["query"],
                    "answers": list(entry["doc"]["choices"] or ()),
                    "response": texts[0],
                    "correct": None if correct is None else int(correct),
                    "score": verdict.get("score"),
                    "error": verdict.get("error"),
                    "reason": verdict.get("reason"),
                    "scores": json.loads(verdict["scores"]) if verdict.get("scores") else None,
                    "probability": verdict.get("probability"),
                    "caption": verdict.get("caption"),
                }
            )
            judge = json.loads(verdict["judge"])
            self_judged = verdict.get("self_judged")
            revision = verdict.get("model_revision") or revision
    model = model_config.get("model_name") or path.stem
    return Results(
        name=Path(model).name,
        model=model,
        model_revision=revision,
        dataset=", ".join(sorted({file.stem for file in files})),
        dataset_fingerprint=benchmark_fingerprint(
            (r["question_id"], r["video_id"], r["question"], r["answers"]) for r in rows
        ),
        judge=judge,
        decoding=model_config.get("decoding") or {},
        self_judged=self_judged,
        rows=sorted(rows, key=lambda row: (row["video_id"], row["question_id"])),
    )
