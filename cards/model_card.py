"""The model card of a run: what was trained on what, round by round, and how it compares with every other arm."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from cards.arm_notes import arm_context
from cards.dataset_card import check_card
from cards.figures import ALT
from cards.run_folder import Run
from cards.style import arm_of
from cards.text import environment
from dataset_builder.errors import KitError

MODEL_FIGURES = ("arms", "accuracy-distance", "alpha-curves", "learning-rates")


def render_model_card(run: Run | str | Path, name: str | None = None) -> str:
    """Render the model card of the released arm.

    Args:
        run: the run, or its folder.
        name: what the model is called; default the run's name.

    Returns:
        The card as text, with a ``model-index`` of the measured accuracy; ``huggingface_hub.ModelCard`` accepts it.

    Raises:
        KitError: the run has no arm to release, or the card would not be valid.
    """
    run = run if isinstance(run, Run) else Run(Path(run))
    arm = run.release_arm
    if arm is None or arm not in run.arms:
        raise KitError(f"{run.folder}: no DPO arm with a validation accuracy, so there is no model to write a card for")
    name = name or run.info.get("name") or run.folder.name
    rounds = run.rounds(arm)
    figures = [figure for figure in MODEL_FIGURES if (run.folder / "figures" / f"{figure}.png").is_file()]
    adapters = run.adapters(arm)
    body = (
        environment()
        .get_template("model_card.md.j2")
        .render(
            run=run,
            name=name,
            arm=arm,
            released=run.arms[arm],
            arms=run.arms,
            spec=arm_of(arm),
            rounds=rounds,
            judged_some=any(p.get("accuracy") is None for r in rounds for p in r.get("alpha_curve") or []),
            adapters=adapters,
            adapter_base=hub_name(adapters[-1]["base"]) if adapters else None,
            moved=run.extrapolation,
            **arm_context(run),
            training=run.training,
            models=run.measured("models"),
            dataset=run.dataset.name,
            counts=run.counts,
            fingerprint=run.info.get("dataset_fingerprint"),
            by_type=accuracy_by_type(run, arm),
            evaluator=run.measured("evaluator"),
            toy="toy" in {(row.get("source") or "").split("-")[0] for row in run.questions},
            sees_truth=any(judge["name"].startswith("reference") for judge in run.judges),
            figures=[(figure, ALT[figure]) for figure in figures],
        )
    )
    text = f"---\n{card_data(run, name)}---\n{body}"
    check_card(text, "model")
    return text


def hub_name(base: str | None) -> str | None:
    """The base an adapter names, if others can find it: NAMESPACE/NAME of the Hub, and no path of this machine."""
    return base if base and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", base) and not Path(base).exists() else None


def card_data(run: Run, name: str) -> str:
    """The YAML block, made by the Hub's card data classes so that the ``model-index`` has their form."""
    from huggingface_hub import EvalResult, ModelCardData

    accuracy = run.arms[run.release_arm].get("accuracy")
    results = None
    if accuracy is not None:
        dataset, metric = run.dataset.name, round(accuracy, 4)
        results = [
            EvalResult(
                task_type="video-text-to-text",
                task_name="Video question answering",
                dataset_type=dataset,
                dataset_name=dataset,
                dataset_config="benchmark",
                dataset_split="test",
                metric_type="accuracy",
                metric_name="accuracy",
                metric_value=metric,
            )
        ]
    data = ModelCardData(
        license="apache-2.0",
        language=["en"],
        library_name="transformers",
        pipeline_tag="video-text-to-text",
        tags=["video", "dpo", "rlaif", "trl", "mmaip-v"],
        datasets=[run.dataset.name],
        model_name=name if results else None,
        eval_results=results,
    )
    return yaml.safe_dump(data.to_dict(), sort_keys=False, allow_unicode=True)


def accuracy_by_type(run: Run, arm: str) -> dict[str, dict[str, float]]:
    """Accuracy on test by question type, of the base and of an arm; empty when either was not evaluated."""
    table: dict[str, dict[str, float]] = {}
    for name in ("base", arm):
        kinds: dict[str, list[int]] = {}
        for row in run.results(name).get("rows", []):
            if row.get("correct") is not None:
                kinds.setdefault(row.get("question_type") or "all", []).append(row["correct"])
        for kind, values in kinds.items():
            table.setdefault(kind, {})[name] = sum(values) / len(values)
    return {kind: values for kind, values in sorted(table.items()) if len(values) == len({"base", arm})}
