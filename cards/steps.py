"""The stages of a release: each one calls the room that does the work, with its inputs and outputs named.

Heavy modules (torch, transformers, trl) are imported inside the stage that needs them, so that a skipped stage costs
nothing.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import asdict
from pathlib import Path

from cards.release_config import ReleaseConfig
from cards.run_folder import Run, choose_release_arm
from cards.stage_log import StageLog, own_sources, progress_lines, read_json, write_json
from cards.text import share
from dataset_builder.errors import KitError


def world(config: ReleaseConfig, log: StageLog) -> dict:
    """Write the toy world's clips and questions."""
    folder, made = Path(config.run_dir, "toy"), config.world

    def body() -> dict:
        from dataset_builder.toy import generate_toy

        said = progress_lines(log.say, "clips")
        questions = generate_toy(folder, seed=config.seed, progress=said, **asdict(made))
        with open(questions, encoding="utf-8") as lines:
            number = sum(1 for _ in lines)
        return {"clips": made.clips, "types": made.types, "questions": number}

    return log.run(
        "world",
        [config.seed, asdict(made)],
        [folder / "questions.jsonl", folder / "truth.json"],
        body,
        lambda m: f"{sum(m['clips'].values()):,} clips, {m['questions']:,} questions ({', '.join(m['types'])})",
        owns=[folder],
        doing="drawing clips and questions",
    )


def models(config: ReleaseConfig, log: StageLog) -> dict:
    """Train base, verifier and zoo on the toy world."""
    from dataset_builder.toy import TYPES
    from recipes.toy import JOBS, MASTERED, train_toy_models

    run = Path(config.run_dir)

    def body() -> dict:
        trained = train_toy_models(run, run / "toy", config.seed, workers=config.workers, say=log.say)["models"]
        records = {
            name: {key: value for key, value in record.items() if key != "train_seconds"}  # times are not compared
            for name, record in trained.items()
        }
        asked = config.world.types
        return {"models": records, "types_used": asked, "types_left_out": [kind for kind in TYPES if kind not in asked]}

    def headline(m: dict) -> str:
        clean = m["models"]["base"]["accuracy_before_bias"]
        per_type = ", ".join(f"{kind} {share(clean.get(kind), 0)}" for kind in m["types_used"])
        weak = [kind for kind in m["types_used"] if clean.get(kind, 0) < MASTERED]
        warning = f"; NOT MASTERED: {', '.join(weak)}" if weak else ""
        return f"{len(m['models'])} models; base before the bias: {per_type}{warning}"

    folders = [run / "models" / "base", run / "models" / "verifier"]
    folders += [run / "models" / "zoo" / member.name for member in config.build_config().zoo]
    weights = [folder / "model.safetensors" for folder in folders]
    doing = f"training {len(JOBS)} tiny models: base, verifier and zoo"
    return log.run("models", [asdict(job) for job in JOBS], weights, body, headline, [run / "models"], doing)


def dataset(config: ReleaseConfig, log: StageLog, overwrite: bool = False) -> dict:
    """Sample the zoo, judge, select pairs, write the dataset folder."""
    folder, made = Path(config.dataset), config.build_config()

    def body() -> dict:
        from dataset_builder.build import build

        return dict(build(made, folder, workers=config.workers, overwrite=overwrite))

    def headline(m: dict) -> str:
        return f"{m['questions']:,} questions, {m['answers']:,} answers, {m['pairs']:,} pairs in {folder}/"

    # the README is left out on purpose: a later stage writes the card into it
    doing = "sampling the zoo, judging its answers, selecting pairs"
    return log.run("dataset", asdict(made), [folder / "provenance.json"], body, headline, doing=doing)


def control(config: ReleaseConfig, log: StageLog) -> dict:
    """Compare the zoo with its validation-best single member at the same number of samples."""
    made = config.build_config()

    def body() -> dict:
        if not any(judge.kind == "reference" for judge in made.judges):
            return {}  # nothing says which answers are right: not measured
        from dataset_builder.control import compare_zoo_and_single

        return compare_zoo_and_single(made, Path(config.dataset), workers=config.workers).to_dict()

    def headline(m: dict) -> str:
        if not m:
            return "not measured: there is no reference judge"
        cover, right = m["coverage"], m["chosen_correct"]
        return (
            f"coverage zoo {share(cover['zoo'])}, {m['member']} alone {share(cover['single'])}; "
            f"right chosen answers {share(right['zoo'])} against {share(right['single'])}"
        )

    doing = "sampling the best single member as often as the zoo, to compare"
    return log.run("control", [], [], body, headline, doing=doing)


def arms(config: ReleaseConfig, log: StageLog) -> dict:
    """Train and evaluate every arm."""
    from dataset_builder.settings import read_yaml

    run, fields = Path(config.run_dir), config.training_fields()

    def body() -> dict:
        from recipes.arms.run import run_arms

        return run_arms(run, config.dataset, workers=config.workers, log=log.say, **fields)

    def headline(m: dict) -> str:
        return ", ".join(f"{name} {share(m['arms'][name]['accuracy'])}" for name in _shown(m))

    inputs = [read_yaml(config.training["config"]), fields]
    owns = [run / "arms", run / "results", run / "arms.json"]
    doing = "training and testing every arm"
    return log.run("arms", inputs, [run / "arms.json"], body, headline, owns, doing)


def _shown(table: dict) -> list[str]:
    """All arms for a line of text, or the base and the best on validation when there are many."""
    arms = table["arms"]
    best = choose_release_arm(arms, table.get("order"))
    return list(arms) if len(arms) <= 8 else [name for name in ("base", best) if name in arms]


def run_file(config: ReleaseConfig) -> Run:
    """Write ``run.json``, the table of contents of the run folder, and open the run."""
    run, dataset_folder = Path(config.run_dir), Path(config.dataset)
    table = read_json(run / "arms.json", {})
    made, judge = read_json(run / "measurements" / "dataset.json", {}), config.judge()
    write_json(
        run / "run.json",
        {
            "name": config.name,
            "seed": config.seed,
            "dataset": config.dataset,
            "dataset_fingerprint": made.get("fingerprint")
            or read_json(dataset_folder / "provenance.json", {}).get("fingerprint"),
            "arms": list(table.get("arms", {})),
            "evaluator": str(judge.get("model") or judge["kind"]).removeprefix(f"{run}/") if judge else None,
            "release_arm": choose_release_arm(table.get("arms", {}), table.get("order")),
        },
    )
    return Run(run, dataset_folder)


def evaluator(config: ReleaseConfig, log: StageLog, run: Run) -> dict:
    """Judge base and released arm by the judge that is released, and write that judge's folder."""
    from cards.evaluating import FOLDER, SIMULATED, headline, measure_evaluator

    folder, spec, known = run.folder / FOLDER, config.judge(), config.world is not None
    license = config.evaluator.license if config.evaluator is not None else "apache-2.0"

    def body() -> dict:
        media = None if known else config.media
        return measure_evaluator(run, spec, truth_known=known, media=media, license=license)

    owns = [folder, run.folder / "results" / FOLDER, run.folder / SIMULATED]
    doing = f"judging the released model by {spec.get('name') or spec['kind']}, the judge that is released"
    outputs = [folder / "config.json"]
    return log.run("evaluator", [spec, license], outputs, body, lambda m: headline(m, folder), owns, doing)


def gold(config: ReleaseConfig, log: StageLog, run: Run) -> dict:
    """Debias what the evaluator says by gold labels; the labels are released with the results, without names."""
    from cards.evaluating import FOLDER

    judged = run.folder / "results" / FOLDER
    labels = run.folder / "results" / "gold" / "labels.jsonl"
    if any(Path(name).resolve() == labels.resolve() for name in config.gold):
        raise KitError(f"{labels}: is written by the release; keep your gold labels in a file elsewhere")
    there = [Path(name) for name in config.gold if Path(name).is_file()]
    absent = [name for name in config.gold if not Path(name).is_file()]
    kept = [hashlib.sha256(path.read_bytes()).hexdigest() for path in there]

    def body() -> dict:
        from cards.gold import debias_arms

        return debias_arms(judged, there, labels, log.say) if there else {}

    def headline(m: dict) -> str:
        if not m:
            return (
                f"not measured: {', '.join(absent)} is not there (python -m eval label "
                f"{judged / f'{run.release_arm}.json'} --dataset {run.dataset} collects labels; then release again)"
            )
        said = [f"{arm} {share(e['mean'])} ({share(e['low'])} to {share(e['high'])})" for arm, e in m["arms"].items()]
        missing = f"; {', '.join(absent)} is not there" if absent else ""
        return f"debiased by labels on {m['videos']:,} videos: {', '.join(said) or 'no arm has enough'}{missing}"

    outputs = [labels] if there else []
    return log.run("gold", [sorted(kept)], outputs, body, headline, [labels], "debiasing by gold labels")


def figures(config: ReleaseConfig, log: StageLog, run: Run) -> dict:
    """Draw the figures of the cards and the report."""

    def body() -> dict:
        from cards.figures import draw_all

        return {"figures": draw_all(run)}

    folder = run.folder / "figures"

    def headline(m: dict) -> str:
        return f"{len(m['figures'])} figures in {folder}/"

    return log.run("figures", [own_sources()], [folder], body, headline, [folder], "drawing")


def cards(config: ReleaseConfig, log: StageLog, run: Run, dataset_card: bool = True) -> dict:
    """Write the dataset card and the model card of the released arm, with their figures beside them.

    Args:
        config: of the release.
        log: of the run.
        run: the run.
        dataset_card: write that one too; it is left alone where it tells of another run.
    """
    release_folder = run.release_folder

    def body() -> dict:
        from cards.dataset_card import DATASET_FIGURES, render_dataset_card
        from cards.model_card import MODEL_FIGURES, render_model_card

        written, places = [], []
        if dataset_card:
            places.append((run.dataset, DATASET_FIGURES, lambda: render_dataset_card(run.dataset, run)))
        if release_folder is not None:
            places.append((release_folder, MODEL_FIGURES, lambda: render_model_card(run, config.name)))
        for folder, names, render in places:
            (folder / "README.md").write_text(render(), encoding="utf-8")
            (folder / "figures").mkdir(exist_ok=True)  # last: `finish` takes it for the sign of a card
            for name in names:
                made, there = run.folder / "figures" / f"{name}.png", folder / "figures" / f"{name}.png"
                if made.is_file():
                    shutil.copyfile(made, there)
                else:  # of an older run: a clip whose frames may no longer be shown, say
                    there.unlink(missing_ok=True)
            written.append(str(folder / "README.md"))
        return {"cards": written}

    outputs = [folder / "README.md" for folder in (run.dataset if dataset_card else None, release_folder) if folder]
    return log.run(
        "cards", [config.name, own_sources()], outputs, body, lambda m: ", ".join(m["cards"]), doing="writing the cards"
    )


def report(config: ReleaseConfig, log: StageLog, run: Run) -> dict:
    """Write ``report.html``."""

    def body() -> dict:
        from cards.report import write_report

        return {"report": str(write_report(run))}

    outputs = [run.folder / "report.html"]
    return log.run(
        "report", [config.name, own_sources()], outputs, body, lambda m: m["report"], doing="writing the report"
    )
