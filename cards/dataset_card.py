"""The dataset card: measured facts only, under the YAML block that the dataset writer wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from cards.figures import ALT
from cards.run_folder import Run
from cards.text import environment
from dataset_builder.errors import KitError

DATASET_FIGURES = ("scores", "margins", "win-rates")
_FRONT = re.compile(r"\A---\n(.*?\n)---\n", re.DOTALL)


def front_matter(readme: Path) -> str:
    """The YAML block of a README as it stands, without the ``---`` lines.

    Raises:
        KitError: the README or its YAML block is missing.
    """
    if not readme.is_file():
        raise KitError(f"{readme}: missing; build the dataset first (python -m dataset_builder build CONFIG.yaml)")
    found = _FRONT.match(readme.read_text(encoding="utf-8"))
    if not found:
        raise KitError(f"{readme}: has no YAML block between '---' lines; build the dataset again")
    return found.group(1)


def render_dataset_card(dataset_folder: str | Path, run: Run | str | Path) -> str:
    """Render the dataset card.

    ``configs`` and ``dataset_info`` (and whatever else the dataset writer set) stay byte for byte; keys it did not set
    are added before them. Every number comes from the dataset's rows and the run folder.

    Args:
        dataset_folder: the dataset; its README gives the YAML block.
        run: the run, or its folder.

    Returns:
        The card as text; ``huggingface_hub.DatasetCard`` accepts it (checked here, without network).

    Raises:
        KitError: no README with a YAML block, or the card would not be valid.
    """
    dataset_folder = Path(dataset_folder)
    run = run if isinstance(run, Run) else Run(Path(run), dataset_folder)
    kept = front_matter(dataset_folder / "README.md")
    present = yaml.safe_load(kept) or {}
    licenses = sorted({row["license"] for row in run.questions if row.get("license")})
    added = {
        "pretty_name": "MMAIP-V",
        "license": licenses[0] if len(licenses) == 1 else "other",
        "language": ["en"],
        "task_categories": ["video-text-to-text", "visual-question-answering"],
        "tags": ["preference", "dpo", "rlaif", "video", "trl", "mmaip-v"],
        "size_categories": [size_category(sum(run.split_rows.get("preferences", {}).values()))],
    }
    added = {key: value for key, value in added.items() if key not in present}
    extra = yaml.safe_dump(added, sort_keys=False, allow_unicode=True) if added else ""
    figures = [name for name in DATASET_FIGURES if (run.folder / "figures" / f"{name}.png").is_file()]
    body = (
        environment()
        .get_template("dataset_card.md.j2")
        .render(
            run=run,
            counts=run.counts,
            drops=run.drops,
            rejected=run.measured("dataset").get("rejected") or {},
            zoo=run.zoo,
            judges=run.judges,
            split_rows=run.split_rows,
            control=run.measured("control"),
            settings=sampling_settings(run),
            types=sorted({row["question_type"] for row in run.questions if row.get("question_type")}),
            types_left_out=run.measured("models").get("types_left_out") or [],
            toy="toy" in {(row.get("source") or "").split("-")[0] for row in run.questions},
            sees_truth=any(judge["name"].startswith("reference") for judge in run.judges),
            licenses=licenses,
            margin=margin_summary(run.pairs),
            diversity=run.selection.get("diversity") or {},
            length=(run.selection.get("length") or {}).get("after") or {},
            disagreement=run.selection.get("disagreement") or {},
            decontamination=run.selection.get("decontamination") or {},
            injections=run.provenance.get("injections"),
            min_margin=find_setting(run.provenance, "min_margin"),
            fingerprint=run.info.get("dataset_fingerprint") or run.provenance.get("fingerprint"),
            figures=[(name, ALT[name]) for name in figures],
            load_name=dataset_folder.name,
        )
    )
    text = f"---\n{extra}{kept}---\n{body}"
    check_card(text, "dataset")
    return text


def check_card(text: str, kind: str) -> None:
    """Parse a card with the Hub's own classes; no network is used.

    Args:
        text: the card.
        kind: ``dataset`` or ``model``.

    Raises:
        KitError: the classes refuse the card, or its metadata does not survive a round trip.
    """
    from huggingface_hub import DatasetCard, ModelCard

    try:
        card = (DatasetCard if kind == "dataset" else ModelCard)(text)
        again = yaml.safe_load(card.data.to_yaml())
    except (ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise KitError(f"the {kind} card is not valid: {error}") from None
    missing = [key for key in ("license", "tags") if not again.get(key)]
    if missing:
        raise KitError(f"the {kind} card lacks '{missing[0]}' in its YAML block")
    if not card.text.strip():
        raise KitError(f"the {kind} card has no text below its YAML block")


def size_category(rows: int) -> str:
    """The Hub's word for a number of rows."""
    steps = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")]
    return next((word for limit, word in steps if rows < limit), "1M<n<10M")


def sampling_settings(run: Run) -> dict[str, dict]:
    """Decoding of every member as the responses record it (the seed varies by block and is left out)."""
    found: dict[str, dict] = {}
    for row in run.responses:
        if row["model"] not in found and row.get("sampling"):
            found[row["model"]] = json.loads(row["sampling"])
    return found


def margin_summary(pairs: list[dict]) -> dict[str, float] | None:
    """Smallest, median and mean margin."""
    values = sorted(pair["margin"] for pair in pairs if pair.get("margin") is not None)
    if not values:
        return None
    middle = len(values) // 2
    median = values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2
    return {"smallest": values[0], "median": median, "mean": sum(values) / len(values)}


def find_setting(tree, key: str):
    """The first value under a key anywhere in nested dicts; None when it is nowhere."""
    if isinstance(tree, dict):
        if key in tree:
            return tree[key]
        for value in tree.values():
            if (found := find_setting(value, key)) is not None:
                return found
    return None
