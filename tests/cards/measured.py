"""A finished run in which everything that its cards can tell has been measured, from rows that tests may change."""

from __future__ import annotations

import json
import random
from pathlib import Path

from cards.run_folder import Run
from cards.stage_log import write_json
from tests.cards.conftest import ARMS

VIDEOS, QUESTIONS, DRAWS, LABELLED = 48, 3, 500, 24
REFERENCE = {"name": "reference", "kind": "reference", "model": None, "revision": "1", "reported": []}
CONFIG = {
    **{"loss_type": ["sigmoid"], "beta": 0.1, "label_smoothing": 0.0, "max_steps": 15, "seed": 0, "num_frames": 8},
    **{"per_device_train_batch_size": 32, "gradient_accumulation_steps": 2, "lr_scheduler_type": "constant"},
    **{"learning_rates": [2e-5, 4e-5, 8e-5], "optim": "adamw_torch", "weight_decay": 0.01, "max_grad_norm": 1.0},
    **{"alphas": [0.0, 0.25, 0.5, 1.0], "judged_alphas": 2, "freeze_vision": True, "bf16": False, "use_peft": True},
    **{"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "save_dtype": "float32", "max_new_tokens": 12},
    **{"base": "a" * 16, "dataset": "b" * 16},
}


def measure(folder: Path) -> Path:
    """Measure a run that is finished (see `tests.cards.pushing.finish`), in place; its cards are written again.

    Returns:
        The run folder.
    """
    run = Run(folder)
    (folder / "measurements" / "evaluator.json").unlink(missing_ok=True)
    truth = {arm: results(arm, accuracy, seed) for seed, (arm, accuracy) in enumerate(ARMS.items())}
    for arm, found in truth.items():
        found.save(folder / "results" / f"{arm}.json")
    write_json(folder / "arms.json", table(run, truth))
    validation(folder)
    write_json(
        folder / "arms" / ".work" / "job.json",
        {"argv": ["--model_name_or_path", str(folder / "models" / "base"), "--beta", "0.1"], "config": CONFIG},
    )
    kinds = {
        f"model.layers.*.{name}": {"weights": 1000 * n, "norm": 3.0 * n, "trained": 0.2 * n, "moved": 0.25 * n}
        for n, name in enumerate(("q_proj", "k_proj", "mlp"), 1)
    }
    kinds = {name: {**of, "relative": of["moved"] / of["norm"]} for name, of in kinds.items()}
    every = {"weights": 6000, "norm": 11.2, "trained": 0.75, "moved": 0.94, "relative": 0.0839}
    moved = {"alpha": 0.25, "kinds": kinds, "all": every, "dtype": "float32", "realised": {"added": {"cosine": 0.9876}}}
    write_json(run.release_folder / "extrapolation.json", moved)
    _evaluator(folder, run.release_arm, truth)
    _cards(Run(folder))
    return folder


def results(name: str, accuracy: float, seed: int, judge: dict = REFERENCE):
    """A model's answers to questions about every video, so many of them right."""
    from dataset_builder.judges.base import settings_hash
    from eval.fingerprint import fingerprint_of
    from eval.results import Results

    rng, rows, kinds = random.Random(seed), [], ("colour", "count", "direction")
    for video in range(VIDEOS):
        easy = rng.random() * 0.3 - 0.15
        for number in range(QUESTIONS):
            right = int(rng.random() < accuracy + easy)
            said = {"correct": right, "score": float(right), "error": None, "reason": None, "probability": None}
            about = {
                "question_id": f"v{video:02d}-{number}",
                "video_id": f"v{video:02d}",
                "question": f"what {number} ?",
            }
            answer = {"answers": ["red"], "response": "red" if right else "blue", "question_type": kinds[number]}
            rows.append({**about, **answer, **said, "scores": {"match": float(right)}, "caption": None})
    settings = {"kind": judge["kind"], "over_references": "maximum"}
    record = {
        **judge,
        "settings": settings,
        "settings_hash": settings_hash(settings),
        "criteria": {"match": [0.0, 1.0]},
    }
    record["fingerprint"] = fingerprint_of(record)
    decoding = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 12, "num_frames": 8, "seed": 0, "blind": False}
    return Results(name, name, "0" * 16, "mmaip-v", "d" * 16, record, decoding, rows=rows)


def judged(of, seed: int, wrong: float = 0.25):
    """The same answers by a judge that errs so often, and once says nothing."""
    rng, rows = random.Random(f"{of.name} {seed}"), []
    for row in of.rows:
        said = row["correct"] ^ (rng.random() < wrong)
        rows.append({**row, "correct": said, "probability": 0.9 if said else 0.1, "score": float(said)})
    rows[7] = {**rows[7], "correct": None, "score": None, "error": "no verdict"}
    judge = {**of.judge, "name": "verifier", "kind": "visual", "model": "verifier", "fingerprint": "e" * 16}
    return type(of)(**{**vars(of), "rows": rows, "judge": judge, "self_judged": "verifier"})


def table(run: Run, truth: dict) -> dict:
    """``arms.json`` with every figure computed from the rows, as recipes do it."""
    from eval.results import compare
    from eval.stats import holm

    made = json.loads((run.folder / "arms.json").read_text())
    for arm, found in truth.items():
        mean = found.accuracy
        made["arms"][arm] |= {"accuracy": mean.mean, "ci95": [mean.low, mean.high], "sft_weight": 0.2}
    for other in ("base", "dpo"):
        names = [arm for arm in truth if arm != other]
        tests = [compare(truth[arm], truth[other], DRAWS, 0) for arm in names]
        for arm, test, p in zip(names, tests, holm([test.p for test in tests])):
            made["arms"][arm] |= {f"diff_vs_{other}": test.difference, f"p_vs_{other}": p}
    return {**made, "draws": DRAWS, "test_clips": VIDEOS, "test_questions": VIDEOS * QUESTIONS}


def validation(folder: Path) -> None:
    """The rows behind every choice on validation, and the figures that they give."""
    from recipes.validation import FILE, ValidationRows, accuracy_at, preference_accuracy_at

    def rows(name: str, alphas: dict[float, tuple[bool, bool]], path: Path) -> dict:
        kept, rng = ValidationRows(), random.Random(name)
        for alpha, (judged, scored) in alphas.items():
            if judged:
                said = [(f"d{n:02d}", f"d{n // 2}", int(rng.random() < ARMS[name] - 0.1 * alpha)) for n in range(47)]
                kept.add_answers(
                    alpha,
                    [
                        {"question_id": q, "video_id": v, "response": "red" if right else "blue", "correct": right}
                        for q, v, right in said
                    ],
                )
            if scored:
                margins = [rng.random() - 0.3 for _ in range(31)]
                kept.add_margins(alpha, [f"d{n:02d}" for n in range(31)], margins)
        kept.save(path)
        return json.loads(path.read_text())

    made = json.loads((folder / "arms.json").read_text())
    for name, arm in made["arms"].items():
        own = folder / "results" / "validation" / "base.json"
        own = own if name == "base" else folder / "arms" / name / "round-1" / FILE
        content, chosen = rows(name, {0.0: (True, False)}, own), 0.0
        for number, curve in enumerate(arm["alpha_curves"], 1):
            place = folder / "arms" / name / f"round-{number}"
            asked = {p["alpha"]: (p["accuracy"] is not None, p["preference_accuracy"] is not None) for p in curve}
            content = rows(name, asked, place / FILE)
            for point in curve:
                point["accuracy"] = accuracy_at(content, point["alpha"])
                point["preference_accuracy"] = preference_accuracy_at(content, point["alpha"])
            chosen = arm["alpha"][number - 1]
            metrics = json.loads((place / "metrics.json").read_text())
            metrics |= {"alpha_curve": curve, "validation_accuracy": accuracy_at(content, chosen)}
            write_json(place / "metrics.json", metrics)
        arm["validation_accuracy"] = accuracy_at(content, chosen)
    write_json(folder / "arms.json", made)


def _evaluator(folder: Path, arm: str, truth: dict) -> None:
    """What the release's evaluator and gold stages leave."""
    from cards.evaluating import SIMULATED, simulate_gold
    from cards.gold import debias_arms
    from eval.evaluator import VQAEvaluator
    from eval.evaluator.agreement import verdict_rows, write_verdicts
    from eval.gold.rows import GoldLabel, response_hash
    from eval.truth import error_rates

    place, arms, rows, pairs = folder / "results" / "evaluator", {}, [], {}
    for name in ("base", arm):
        said = judged(truth[name], 1)
        said.save(place / f"{name}.json")
        known = {row["question_id"]: row["correct"] for row in truth[name].rows}
        arms[name] = {**error_rates(said, known), "self_judged": "verifier", "unjudged": said.errors}
        pairs[name] = truth[name], said
        rows += verdict_rows(said, "evaluator") + verdict_rows(truth[name], "truth")
    for name, (debiased, labelled) in simulate_gold(pairs, 40, folder / SIMULATED).items():
        arms[name]["debiased"] = debiased
        rows += labelled
    for name, key, accuracy in (("without_frames", "without_frames", 0.5), ("blind", "blind", 0.35)):
        found = results(name, accuracy, 77)
        found.save(place / f"{name}.json")
        arms[arm][key] = found.accuracy.as_dict()
    rows += verdict_rows(judged(truth[arm], 2, 0.5), "without_frames", arm)
    record = {key: value for key, value in said.judge.items() if key != "settings"}
    write_json(folder / "measurements" / "evaluator.json", {"judge": record, "arms": arms, "gold_videos": 40})
    labels = folder.parent / "by-hand.jsonl"
    lines = [
        GoldLabel(
            row["question_id"], row["video_id"], (response_hash(row["response"]),), "ada", said_of[row["correct"]]
        )
        for said_of in [{1: "correct", 0: "incorrect"}]
        for row in truth[arm].rows
        if int(row["video_id"][1:]) < LABELLED
    ]
    labels.write_text("".join(f"{line.as_json()}\n" for line in lines))
    found = debias_arms(place, [labels], folder / "results" / "gold" / "labels.jsonl", lambda line: None)
    write_json(folder / "measurements" / "gold.json", found)
    write_verdicts(folder.parent / "verdicts.parquet", rows)
    VQAEvaluator({"kind": "reference"}, verdicts=folder.parent / "verdicts.parquet").save_pretrained(
        folder / "evaluator"
    )


def _cards(run: Run) -> None:
    from cards.model_card import render_model_card

    (run.release_folder / "README.md").write_text(render_model_card(run, "demo"), encoding="utf-8")


def repo(run_folder: Path, kind: str, target: Path) -> Path:
    """A repo as the plan would push it, in a folder, without its weights."""
    from cards.push.plan import Options, make_plan

    for path, file in make_plan(run_folder, Options("tester")).repo(kind).final.files.items():
        if not path.endswith((".safetensors", "tokenizer.json")):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_bytes(file.read())
    return target
