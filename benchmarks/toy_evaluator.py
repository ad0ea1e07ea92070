"""Judges on the toy world, where the truth is known: ones that look, ones that read, and baselines that see no video.

    python -m benchmarks.toy_evaluator [--run runs/demo] [--dataset mmaip-v] [--seed 0]

Needs the folders of `make demo`. Two tables:

* **Closed questions.** The same stored answers of two models, judged by a checkpoint that sees the video, by the same
  one without frames, and by a tiny text judge in the two protocols of earlier work; each beside the truth. Then a model
  that is shown no video, and what 40 simulated gold videos make of each judge's verdicts.
* **Open questions.** "name a colour you see" about clips with two colours, of which the reference names one: all four
  colours as answers, judged by the text judge with the reference, and by a judge that looks, with and without it.

Every judge is trained here (`recipes.toy_judges`) but the demo's verifier. In the rows of the results file ``ours`` is
the share of wrong verdicts of the judge that looks, ``peer`` that of the judge that reads.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import write_results
from dataset_builder.errors import KitError

OPEN_CLIPS, OPEN_TEST = 1000, 150
GOLD_VIDEOS = 40
MODELS = ("base", "iter_w2s+sft")
HEAD = f"{'judge':<24} {'says':>7} {'wrong':>7} {'missed':>7} {'passed':>7}"


def main(argv: list[str] | None = None) -> None:
    """Train the judges that are missing, judge, print and write."""
    parser = argparse.ArgumentParser(description="Judges on the toy world, beside the truth.")
    parser.add_argument("--run", default="runs/demo")
    parser.add_argument("--dataset", default="mmaip-v")
    parser.add_argument("--work", default="runs/toy-evaluator", help="where the judges trained here are kept")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    run, work = Path(options.run), Path(options.work)
    if not (run / "results").is_dir():
        raise KitError(f"{run}: there are no results; run `make demo` first")
    closed = closed_questions(run, options.dataset, text_judge(work, options.seed), options.seed)
    opened = open_questions(run, work, options.seed)
    rows = [row(f"closed: {name}", sides["visual"], sides["video_chatgpt"]) for name, sides in closed.items()]
    rows += [
        row("open: with the reference", opened["visual_with_reference"], opened["text_with_reference"]),
        row("open: looking without the reference", opened["visual"], opened["text_with_reference"]),
    ]
    say(closed, opened)
    write_results(
        "toy_evaluator", [{**r, "closed": closed, "open": opened} if n == 0 else r for n, r in enumerate(rows)]
    )


def text_judge(work: Path, seed: int) -> Path:
    """The judge that only reads; trained once."""
    folder = work / f"text-judge-{seed}"
    if not folder.is_dir():
        from recipes.toy_judges import train_text_judge

        print("training the judge that only reads …", flush=True)
        train_text_judge(folder, seed)
    return folder


def closed_questions(run: Path, dataset: str, text: Path, seed: int) -> dict[str, Any]:
    """Error rates of every judge on stored answers, and the baselines without video."""
    from dataset_builder.models import load_model
    from dataset_builder.toy import Scene
    from eval.rejudge import rejudge
    from eval.results import Results
    from eval.runner import evaluate, load_benchmark
    from eval.truth import error_rates, simulated_debiasing
    from recipes.toy_judges import caption_of

    items = load_benchmark(dataset, "test")
    videos = {item.question_id: item.video for item in items}
    scenes = json.loads((run / "toy" / "truth.json").read_text())["clips"]
    fields = Scene.__dataclass_fields__
    judges = closed_judges(run, text)
    found = {}
    for name in [arm for arm in MODELS if (run / "results" / f"{arm}.json").is_file()]:
        results = Results.load(run / "results" / f"{name}.json")
        truth = {row["question_id"]: row["correct"] for row in results.rows}  # the reference is the whole truth here
        for row in results.rows:
            clip = scenes[row["question_id"].rsplit("-", 1)[0]]
            made = {key: tuple(clip[key]) if key == "lamp_on" else clip[key] for key in fields}
            row["caption"] = caption_of(Scene(**made))
        sides = {}
        for kind, judge in judges.items():
            judged = rejudge(results, judge, videos, trained_on=dataset)
            sides[kind] = {
                **error_rates(judged, truth),
                "debiased": simulated_debiasing(judged, truth, GOLD_VIDEOS, seed),
            }
        chat = load_model(run / results.model.removeprefix(f"{run}/"), device="cpu")
        blind = evaluate(chat, items, blind=True)
        found[name] = {**sides, "model_without_video": {"accuracy": blind.accuracy.as_dict()}}
    return found


def closed_judges(run: Path, text: Path) -> dict[str, Any]:
    """The judges of the closed questions, by what tables call them."""
    from dataset_builder.judges import make_judge

    verifier = {"kind": "visual", "model": str(run / "models" / "verifier")}
    specs = {
        "visual": verifier,
        "visual_without_frames": {**verifier, "num_frames": 0},
        "video_chatgpt": {"kind": "video_chatgpt", "model": str(text)},
        "hound": {"kind": "hound", "model": str(text)},
    }
    return {name: make_judge(spec, device="cpu") for name, spec in specs.items()}


def open_questions(run: Path, work: Path, seed: int) -> dict[str, Any]:
    """Error rates on questions with right answers beyond the reference."""
    from dataset_builder.judges import make_judge
    from dataset_builder.toy import COLOURS
    from dataset_builder.toy_open import QUESTION, generate_open
    from eval.rejudge import rejudge
    from eval.results import MORE_FIELDS, Results
    from eval.truth import error_rates
    from recipes.toy_judges import train_open_judge

    clips = generate_open(work / f"open-{seed}", OPEN_CLIPS, seed)
    folder = work / f"open-judge-{seed}"
    if not folder.is_dir():
        print("training the judge that looks for colours …", flush=True)
        train_open_judge(folder, run / "models" / "verifier", clips[OPEN_TEST:], seed)
    rows, truth, videos = [], {}, {}
    for path, scene in clips[:OPEN_TEST]:
        for colour in COLOURS:
            question_id = f"{path.stem}-{colour}"
            rows.append(
                {
                    **{"question_id": question_id, "video_id": path.stem, "question_type": "open"},
                    **{"question": QUESTION, "answers": [scene.reference], "response": colour},
                    **{"correct": None, "score": None, "error": None, **dict.fromkeys(MORE_FIELDS)},
                }
            )
            truth[question_id] = int(colour in scene.colours)
            videos[question_id] = str(path)
    results = Results("open", "every colour", "", rows=rows)
    beyond = {q for q, row in zip(truth, rows) if truth[q] and row["response"] not in row["answers"]}
    looking = {"kind": "visual", "model": str(folder)}
    specs = {
        "text_with_reference": {"kind": "video_chatgpt", "model": str(text_judge(work, seed))},
        "visual": looking,
        "visual_with_reference": {**looking, "use_references": True},
        "visual_without_frames": {**looking, "num_frames": 0},
    }
    found = {}
    for name, spec in specs.items():
        judged = rejudge(results, make_judge(spec, device="cpu"), videos)
        extra = replace(judged, rows=[row for row in judged.rows if row["question_id"] in beyond])
        found[name] = {
            **error_rates(judged, truth),
            "error_beyond_reference": error_rates(extra, truth)["error"]["mean"],
        }
    return found


def row(case: str, ours: dict, peer: dict) -> dict:
    """One row of the results file."""
    a, b = ours["error"]["mean"], peer["error"]["mean"]
    return {
        "case": case,
        "ours": a,
        "peer": b,
        "ratio": b / a if a else float(b > 0),
        "unit": "share of wrong verdicts",
    }


def say(closed: dict, opened: dict) -> None:
    """Both tables, in per cent."""
    for name, sides in closed.items():
        print(f"\n{name}: truth {percent(sides['visual']['truth'])}", end="")
        print(f", shown no video {percent(sides['model_without_video']['accuracy']['mean'])}")
        print(f"{HEAD}  debiased with {GOLD_VIDEOS} gold videos")
        for kind, side in sides.items():
            if kind == "model_without_video":
                continue
            fixed = side["debiased"]
            label = kind + (" (self-judged)" if side["self_judged"] else "")
            span = f"({percent(fixed['low'])} to {percent(fixed['high'])})"
            print(f"{label:<24} {figures(side)}  {percent(fixed['mean'])} {span}")
    print(f"\nname a colour you see: truth {percent(opened['visual']['truth'])}")
    print(f"{HEAD}  wrong on right answers beyond the reference")
    for kind, side in opened.items():
        print(f"{kind:<24} {figures(side)}  {percent(side['error_beyond_reference'])}")
    print()


def figures(side: dict) -> str:
    """The four figures of a line."""
    shown = (side["accuracy"]["mean"], side["error"]["mean"], side["missed"], side["false_alarms"])
    return " ".join(f"{percent(value):>7}" for value in shown)


def percent(value: float | None) -> str:
    """As a table shows it."""
    return "–" if value is None else f"{100 * value:.1f}"


if __name__ == "__main__":
    main()
