"""The model card of a run: what was trained on what, round by round, and how it compares with every other arm."""

from __future__ import annotations

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from cards.arm_notes import arm_context
from cards.dataset_card import check_card, front_matter
from cards.dataset_stats import truth_readers
from cards.figures import ALT
from cards.hub_fields import OTHER, hub_license, license_name
from cards.run_folder import Run
from cards.stage_log import read_json
from cards.style import arm_of
from cards.text import environment, rate, short
from dataset_builder.errors import KitError

MODEL_FIGURES = ("arms", "accuracy-distance", "alpha-curves", "learning-rates")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
# Settings of the training that the card shows: their names there, keys of the run's record, how they are written.
SETTINGS = (
    ("loss", ("loss_type",), "words"),
    ("beta", ("beta",), "short"),
    ("label smoothing", ("label_smoothing",), "short"),
    ("optimizer steps a round", ("max_steps",), "short"),
    ("pairs a device and step", ("per_device_train_batch_size",), "short"),
    ("gradient accumulation", ("gradient_accumulation_steps",), "short"),
    ("learning rates tried", ("learning_rates", "learning_rate"), "rates"),
    ("schedule", ("lr_scheduler_type",), "words"),
    ("optimizer", ("optim",), "words"),
    ("weight decay", ("weight_decay",), "short"),
    ("gradient clipping", ("max_grad_norm",), "short"),
    ("alphas tried", ("alphas",), "shorts"),
    ("alphas judged by answers, besides 0", ("judged_alphas",), "short"),
    ("vision tower frozen", ("freeze_vision",), "flag"),
    ("bf16 autocast", ("bf16",), "flag"),
    ("saved as", ("save_dtype",), "words"),
    ("LoRA", ("use_peft",), "flag"),
    ("LoRA rank", ("lora_r",), "short"),
    ("LoRA alpha", ("lora_alpha",), "short"),
    ("LoRA dropout", ("lora_dropout",), "short"),
    ("frames of a video", ("num_frames",), "short"),
    ("longest answer in evaluation, tokens", ("max_new_tokens",), "short"),
    ("seed", ("seed",), "short"),
)


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
    figures = {figure: ALT[figure] for figure in MODEL_FIGURES if (run.folder / "figures" / f"{figure}.png").is_file()}
    adapters = run.adapters(arm)
    tested = run.results(arm)
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
            alphas_tried=sorted({point["alpha"] for r in rounds for point in r.get("alpha_curve") or []}),
            judged_some=any(p.get("accuracy") is None for r in rounds for p in r.get("alpha_curve") or []),
            adapters=adapters,
            adapter_base=hub_name(adapters[-1]["base"]) if adapters else None,
            moved=run.extrapolation,
            **arm_context(run),
            training=run.training,
            settings=shown_settings(recorded(run)),
            base=base_facts(run),
            command=training_command(run),
            models=run.measured("models"),
            dataset=run.dataset.name,
            counts=run.counts,
            fingerprint=run.info.get("dataset_fingerprint"),
            by_type=accuracy_by_type(run, arm),
            judge=tested.get("judge") or {},
            decoding=tested.get("decoding") or {},
            benchmark=tested.get("dataset_fingerprint") or None,
            evaluator=run.measured("evaluator"),
            gold=run.measured("gold"),
            types=sorted({row["question_type"] for row in run.questions if row.get("question_type")}),
            choosers=[judge["name"] for judge in run.judges],
            toy=run.toy,
            sees_truth=bool(truth_readers(run.provenance, [judge["name"] for judge in run.judges])),
            figures=figures,
        )
    )
    text = f"---\n{card_data(run, name)}---\n{body}"
    check_card(text, "model")
    return text


def hub_name(base: str | None) -> str | None:
    """The base an adapter names, if others can find it: NAMESPACE/NAME of the Hub, and no path of this machine."""
    return base if base and _HUB_ID.fullmatch(base) and not Path(base).exists() else None


def recorded(run: Run) -> dict[str, Any]:
    """The settings of the training as the run wrote them down; empty without a record."""
    return read_json(run.folder / "arms" / ".work" / "job.json", {}).get("config", {})


def shown_settings(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values of the settings that the card shows; what the record does not hold is left out."""
    found = []
    for name, keys, form in SETTINGS:
        value = next((config[key] for key in keys if config.get(key) is not None), None)
        if value is not None:
            found.append((name, written(value, form)))
    return found


def written(value: Any, form: str) -> str:
    """A setting as the card writes it."""
    items = value if isinstance(value, list) else [value]
    if form == "flag":
        return "yes" if value else "no"
    if form == "words":
        return ", ".join(f"`{item}`" for item in items)
    return ", ".join(rate(item) if form == "rates" else short(item) for item in items)


def base_facts(run: Run) -> dict[str, Any]:
    """The model that every arm starts from.

    Returns:
        ``id`` and ``revision`` (of the Hub; else ``name`` of the folder and ``content``, a hash over its files),
        ``license`` and ``license_link`` (as its own card says; None where it says nothing), ``model_type`` and
        ``architecture`` (of the released configuration), ``made_here`` (the run itself trained it).
    """
    known = recorded(run).get("base") or ""
    words = read_json(run.folder / "arms" / ".work" / "job.json", {}).get("argv") or []
    given = next((after for word, after in pairwise(words) if word == "--model_name_or_path"), None)
    hub = "/" in known and "@" in known
    folder = run.folder / "models" / "base"
    config = read_json(run.release_folder / "config.json", {}) if run.release_folder else {}
    if not config:
        config = read_json(folder / "config.json", {})
    place = Path(given) if given and not hub else folder
    return {
        "id": known.rsplit("@", 1)[0] if hub else None,
        "revision": known.rsplit("@", 1)[1] if hub else None,
        "name": place.name if not hub and (given or folder.is_dir()) else None,
        "content": known if known and not hub else None,
        **_license(place),
        "model_type": config.get("model_type"),
        "architecture": next(iter(config.get("architectures") or []), None),
        "made_here": not hub and "base" in run.measured("models").get("models", {}),
    }


def _license(folder: Path) -> dict[str, str | None]:
    """What the card in a checkpoint's folder says; ``license`` is the name that stands beside ``license: other``."""
    from cards.push.copies import split_card

    card = folder / "README.md"
    data = split_card(card.read_text(encoding="utf-8", errors="replace"))[0] if card.is_file() else {}
    said = data.get("license")
    said = said[0] if isinstance(said, list) and len(said) == 1 else said
    if said == OTHER:
        said = data.get("license_name") or said
    link = data.get("license_link")
    link = link if isinstance(link, str) and re.fullmatch(r"https?://\S+", link) else None  # a file stays behind
    return {"license": said if isinstance(said, str) else None, "license_link": link}


def license_fields(base: dict[str, Any], own: bool) -> dict[str, str]:
    """The fields of a model's card on its licence: that of its base.

    Args:
        base: see :func:`base_facts`.
        own: whether the kit made the base, whose licence it has where nothing else is said.

    Returns:
        ``license``; with ``other`` also ``license_name``, and ``license_link`` where there is an address.
    """
    said, link = base["license"], base["license_link"]
    if said is None and own:
        return {"license": "apache-2.0"}
    if said is None:
        link = f"https://huggingface.co/{base['id']}" if base["id"] else None
        return {"license": OTHER, "license_name": "as-its-base", **({"license_link": link} if link else {})}
    if (word := hub_license([said])) != OTHER:
        return {"license": word}
    return {"license": OTHER, "license_name": license_name([said]), **({"license_link": link} if link else {})}


def training_command(run: Run) -> str | None:
    """What trained the arms, as it could be typed in a clone of the kit; None where the run has no record of it."""
    words = read_json(run.folder / "arms" / ".work" / "job.json", {}).get("argv")
    if not words:
        return None
    options: list[list[str]] = []
    for word in words:
        if word.startswith("--"):
            options.append([word])
        elif options:
            options[-1].append(_portable(word, run))
    line = "accelerate launch recipes/iter_w2s.py"
    lines = [" ".join([option[0], *map(shlex.quote, option[1:])]) for option in [["--arms", "true"], *options]]
    return " \\\n    ".join([line, *lines])


def _portable(word: str, run: Run) -> str:
    """A word of a command without folders of this machine: what lies in the run is named from there on."""
    if word.startswith("{"):
        try:
            fields = json.loads(word)
        except ValueError:
            return word
        return json.dumps({k: _portable(v, run) if isinstance(v, str) else v for k, v in fields.items()})
    path = Path(word)
    if not path.is_absolute() and ".." not in path.parts:
        return word
    for folder, instead in ((run.folder, Path("runs", run.folder.resolve().name)), (run.dataset, run.dataset.name)):
        if path.resolve().is_relative_to(folder.resolve()):
            return str(Path(instead) / path.resolve().relative_to(folder.resolve()))
    return path.name


def card_data(run: Run, name: str) -> str:
    """The YAML block, made by the Hub's card data classes so that the ``model-index`` has their form."""
    from huggingface_hub import EvalResult, ModelCardData

    accuracy, base = run.arms[run.release_arm].get("accuracy"), base_facts(run)
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
        **license_fields(base, base["made_here"] or run.toy),
        language=languages(run),
        library_name="transformers",
        pipeline_tag="video-text-to-text",
        tags=["video", "dpo", "rlaif", "trl", "mmaip-v"],
        datasets=[run.dataset.name],
        model_name=name if results else None,
        eval_results=results,
    )
    return yaml.safe_dump(data.to_dict(), sort_keys=False, allow_unicode=True)


def languages(run: Run) -> list[str]:
    """Codes of the languages that the dataset's card tells; English where it tells none."""
    readme = run.dataset / "README.md"
    told = (yaml.safe_load(front_matter(readme)) or {}).get("language") if readme.is_file() else None
    return [told] if isinstance(told, str) else list(told or ["en"])


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
