"""A small run folder with real files: toy clips, a dataset by the kit's own writer, arms with made-up measurements."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest

from cards.stage_log import write_json

MEMBERS = ("ada", "bee", "cat", "dot")
SKILL = {"ada": 0.9, "bee": 0.7, "cat": 0.55, "dot": 0.35}
ARMS = {"base": 0.44, "sft_chosen": 0.70, "dpo": 0.65, "dpo_expo": 0.64, "iter": 0.66, "iter_w2s": 0.68}
ALPHAS = (0.0, 0.25, 0.5, 1.0)


def score(judge: str, criterion: str, value: float | None, error: str | None = None) -> dict:
    """One entry of the ``scores`` column."""
    return {
        "judge": judge,
        "judge_revision": hashlib.sha256(judge.encode()).hexdigest()[:16],
        "settings_hash": hashlib.sha256(criterion.encode()).hexdigest()[:16],
        "criterion": criterion,
        "score": value,
        "low": 0.0,
        "high": 1.0,
        "rationale": None,
        "error": error,
    }


def make_dataset(folder: Path, clips: int = 24) -> dict:
    """Write ``folder/mmaip-v`` with the kit's writer; returns counts as a build would."""
    from dataset_builder.assemble import PAIR_SCHEMA, PAIRS, RESPONSE_SCHEMA, RESPONSES, write_rows
    from dataset_builder.mmaip_v import write_dataset
    from dataset_builder.table import write_questions
    from dataset_builder.toy import ANSWERS, generate_toy

    split = {"train": clips - 8, "validation": 4, "test": 4}
    source = generate_toy(folder / "toy", seed=7, clips=split, types=("colour", "count", "direction"))
    rng, work = random.Random(0), folder / ".mmaip-v-work"
    questions, responses, pairs = [], [], []
    for row in map(json.loads, source.read_text().splitlines()):
        path = folder / "toy" / "videos" / row["video"]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        question = {
            **{key: row[key] for key in ("source", "license", "question", "answer", "question_type", "split")},
            **{"question_id": row["id"], "video_id": digest[:16], "source_id": row["video"], "sha256": digest},
            **{"start": None, "end": None, "phash": "0" * 16, "duration": 2.0, "answers": [row["answer"]]},
            **{"origin": "given", "path": str(path), "embed": True},
        }
        questions.append(question)
        answers = []
        for member in MEMBERS:
            right = rng.random() < SKILL[member]
            text = row["answer"] if right else rng.choice(ANSWERS[row["question_type"]])
            match, seen = float(text == row["answer"]), rng.betavariate(6, 2) if right else rng.betavariate(2, 5)
            scores = [score("reference", "match", match), score("reference", "f1", match)]
            scores.append(score("verifier", "correct", seen))
            decoding = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8, "frames": 8, "seed": 0}
            answers.append(
                {
                    **{"response_id": f"{row['id']}-{member}", "question_id": row["id"], "model": member},
                    **{"model_revision": hashlib.sha256(member.encode()).hexdigest()[:16], "response": text},
                    **{"sampling": json.dumps(decoding), "finish_reason": "stop", "flags": [], "scores": scores},
                    **{"prompt_tokens": 60, "completion_tokens": 2, "disagreement": abs(match - seen)},
                    **{"score": (match + seen) / 2, "question": row["question"], "answer": row["answer"]},
                    "video_id": digest[:16],
                }
            )
        responses += answers
        best, worst = max(answers, key=lambda a: a["score"]), min(answers, key=lambda a: a["score"])
        if row["split"] != "test" and best["response"] != worst["response"]:
            pair = {"question_id": row["id"], "margin": best["score"] - worst["score"]}
            for side, answer in (("chosen", best), ("rejected", worst)):
                pair |= {f"response_id_{side}": answer["response_id"], f"model_{side}": answer["model"]}
                pair |= {side: answer["response"], f"score_{side}": answer["score"]}
            pairs.append(pair)
    questions.sort(key=lambda q: (q["sha256"], q["question_id"]))
    order = {q["question_id"]: place for place, q in enumerate(questions)}
    pairs.sort(key=lambda p: order[p["question_id"]])
    write_questions(questions, work / "questions.arrow", block_size=16)
    write_rows(sorted(responses, key=lambda r: order[r["question_id"]]), work / RESPONSES, RESPONSE_SCHEMA)
    write_rows(pairs, work / PAIRS, PAIR_SCHEMA)
    provenance = {"config_hash": "c" * 16, "fingerprint": "f" * 16, "pairs": {"min_margin": 0.1}}
    write_dataset(work, folder / "mmaip-v", embed=True, extra={"provenance.json": provenance})
    held_out = sum(q["split"] == "test" for q in questions)
    return {
        **{"clips": clips, "questions": len(questions), "answers": len(responses), "pairs": len(pairs)},
        "drops": {"identical_answers": len(questions) - held_out - len(pairs), "test_split": held_out},
        **{"rejected": {}, "excluded": {}, "fingerprint": "f" * 16},
    }


def make_arms(run: Path, accuracies: dict[str, float] = ARMS, stopped: tuple[str, ...] = ()) -> dict:
    """``arms.json``, ``results/`` and rounds in the form that ``recipes`` writes.

    Args:
        run: the run folder.
        accuracies: test accuracy by arm.
        stopped: arms that ended after two of three rounds.
    """
    from recipes.arms.specs import parse_arm

    arms = {}
    for place, (name, accuracy) in enumerate(accuracies.items()):
        spec = parse_arm(name)
        arm = {"accuracy": accuracy, "ci95": [accuracy - 0.03, accuracy + 0.03], "validation_accuracy": accuracy - 0.01}
        arm |= {"p_vs_base": None if name == "base" else 6e-05, "p_vs_dpo": None if name == "dpo" else 0.0312}
        arm |= {"diff_vs_base": accuracy - ARMS["base"], "diff_vs_dpo": accuracy - ARMS["dpo"], "alpha": []}
        arm |= {"distance": 0.3 * (place % 11), "learning_rate": None if name == "base" else 4e-5, "alpha_curves": []}
        rates = [] if name == "base" else [(2e-5, accuracy - 0.05), (4e-5, accuracy - 0.01), (8e-5, accuracy - 0.03)]
        arm["lr_search"] = [{"learning_rate": rate, "validation_accuracy": value} for rate, value in rates]
        rounds = 0 if spec.scheme in ("base", "sft_chosen") else 1 if not spec.iterates else 2 if name in stopped else 3
        own = {"sampled": 480, "judge_calls": 600} if spec.pairs == "on_policy" else {}
        for number in range(1, rounds + 1):
            grid = ALPHAS if spec.extrapolates else (0.0,)
            curve = [
                {
                    **{"alpha": a, "preference_accuracy": 0.6 + 0.1 * a + 0.02 * number if len(grid) > 1 else None},
                    **{"preference_margin": 0.1 + a if len(grid) > 1 else None, "accuracy": None},
                }
                for a in grid
            ]
            for point in curve[:3]:  # the last one is not promising, and nobody judges it
                point["accuracy"] = accuracy - 0.05 * abs(point["alpha"] - 0.25) - 0.02 * (3 - number)
            best = max(curve[:3], key=lambda point: point["accuracy"])
            arm["alpha"].append(best["alpha"])
            arm["alpha_curves"].append(curve)
            write_json(
                run / "arms" / name / f"round-{number}" / "metrics.json",
                {
                    **{"round": number, "alpha": best["alpha"], "alpha_curve": curve, "learning_rate": 4e-5},
                    **{"steps": 15, "distance": 0.2 * number, "validation_accuracy": best["accuracy"], "train": {}},
                    "pairs": {"pairs": 48, **own},
                },
            )
        health = {"malformed": 0.0, "repeated": 0.0, "chosen_logp": -4.0, "margin": 2.0, "mean_length": 1.0}
        arm |= {"health": None if name == "base" else health, "sft_weight": 0.2 if spec.sft else 0.0}
        arm |= {"stopped": "after round 2: neither training nor extrapolation has helped" if name in stopped else None}
        arm |= {"steps": 0 if name == "base" else 30 if name in stopped else 45}
        arm |= {"samples": own.get("sampled", 0) * rounds, "judge_calls": own.get("judge_calls", 0) * rounds}
        arms[name] = arm
        rows = [
            {"question_id": f"q{n}", "video_id": f"v{n // 3}", "question_type": kind, "correct": int(n < 30 * accuracy)}
            for n, kind in enumerate(("colour", "count", "direction") * 10)
        ]
        write_json(run / "results" / f"{name}.json", {"name": name, "rows": rows})
    table = {"arms": arms, "order": list(arms), "release_arm": "iter_w2s", "test_clips": 300, "test_questions": 900}
    return {**table, "draws": 100_000, "seed": 0, "steps": 45}


def make_run(folder: Path) -> Path:
    """A finished run folder with its dataset beside it; returns ``folder/run``."""
    run = folder / "run"
    made = make_dataset(folder)
    write_json(run / "measurements" / "dataset.json", {**made, "dataset": str(folder / "mmaip-v")})
    sides = {"coverage": {"zoo": 0.964, "single": 0.71}, "chosen_correct": {"zoo": 0.957, "single": 0.83}}
    write_json(run / "measurements" / "control.json", {**sides, "member": "ada"})
    clean = {"colour": 0.991, "count": 0.972, "direction": 0.965}
    write_json(
        run / "measurements" / "models.json",
        {
            "models": {"base": {"accuracy_before_bias": clean}},
            "types_used": list(clean),
            "types_left_out": ["order", "shape"],
        },
    )
    write_json(run / "arms.json", make_arms(run))
    write_json(
        run / "run.json",
        {
            **{"name": "demo", "seed": 0, "dataset": str(folder / "mmaip-v"), "dataset_fingerprint": "f" * 16},
            **{"arms": list(ARMS), "evaluator": "models/verifier", "release_arm": "iter_w2s"},
        },
    )
    return run


@pytest.fixture(scope="session")
def made_run(tmp_path_factory) -> Path:
    """A run folder with figures that tests only read."""
    from cards.figures import draw_all
    from cards.run_folder import Run

    run = make_run(tmp_path_factory.mktemp("release"))
    draw_all(Run(run))
    return run


@pytest.fixture
def own_run(made_run, tmp_path) -> Path:
    """A copy of the run folder that a test may change; the dataset is copied too."""
    import shutil

    shutil.copytree(made_run.parent, tmp_path / "copy")
    run = tmp_path / "copy" / "run"
    info = json.loads((run / "run.json").read_text())
    write_json(run / "run.json", {**info, "dataset": str(tmp_path / "copy" / "mmaip-v")})
    return run


@pytest.fixture(scope="session")
def finished(made_run, tmp_path_factory) -> Path:
    """A run with weights of every round, cards and an evaluator, ready to be pushed, that tests only read."""
    from tests.cards.pushing import copy, finish

    run = copy(made_run, tmp_path_factory.mktemp("finished") / "place")
    finish(run)
    return run
