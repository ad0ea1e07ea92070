"""The dataset card: measured facts only, under the YAML block that the dataset writer wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from cards.dataset_samples import NAMES, sample_rows, shown
from cards.dataset_stats import (
    coverage,
    criterion_means,
    judge_agreement,
    length_of_judges,
    length_of_pairs,
    reference_judge,
    self_judged,
    sources,
    truth_readers,
)
from cards.figures import ALT
from cards.hub_fields import OTHER, check_fields, hub_license, license_name
from cards.run_folder import Run
from cards.text import environment
from dataset_builder.errors import KitError

DATASET_FIGURES = ("coverage", "scores", "win-rates", "margins", "length", "agreement", *NAMES)
PROMPTS = ("system", "prompt", "prompt_with_references", "example")  # of a judge's settings: what its model reads
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
    added = {key: value for key, value in card_fields(run, licenses).items() if key not in present}
    if "license" in present:
        added.pop("license_name", None)
    extra = yaml.safe_dump(added, sort_keys=False, allow_unicode=True) if added else ""
    there = [name for name in DATASET_FIGURES if (run.folder / "figures" / f"{name}.png").is_file()]
    made, chosen = run.measured("dataset"), run.selection
    body = (
        environment()
        .get_template("dataset_card.md.j2")
        .render(
            load_name=dataset_folder.name,
            counts=run.counts,
            split_rows=run.split_rows,
            types=sorted({kind for kind in run.question_types.values() if kind}),
            types_left_out=run.measured("models").get("types_left_out") or [],
            toy=run.toy,
            licenses=licenses,
            fingerprint=run.info.get("dataset_fingerprint") or run.provenance.get("fingerprint"),
            imported=run.imported,
            zoo=run.zoo,
            settings=sampling_settings(run),
            asked=zoo_prompts(run.provenance),
            judges=run.judges,
            prompts=judge_prompts(run.provenance),
            truth_readers=truth_readers(run.provenance, [judge["name"] for judge in run.judges]),
            failed=sum(judge["errors"] for judge in run.judges),
            rule=run.provenance.get("pairs") or {},
            min_margin=find_setting(run.provenance, "min_margin"),
            drops=run.drops,
            drops_known="drops" in made,
            excluded=made.get("excluded") or {},
            pair_drops=chosen.get("pair_drops") or {},
            rejected=made.get("rejected") or {},
            decontamination=chosen.get("decontamination") or {},
            control=run.measured("control"),
            margin=margin_summary(run.pairs),
            diversity=chosen.get("diversity") or {},
            length=(chosen.get("length") or {}).get("after") or {},
            disagreement=chosen.get("disagreement") or {},
            injections=run.provenance.get("injections"),
            languages={**added, **present}.get("language"),
            null_clips=list(run.videos_held.values()).count(False),
            factory_key=factory_key(run.provenance),
            strips=[name for name in there if name in NAMES],
            figures={name: ALT[name] for name in there if name not in NAMES},
            plain=shown,
            fence=fence,
            **measurements(run),
        )
    )
    text = f"---\n{extra}{kept}---\n{body}"
    check_card(text, "dataset")
    return text


def card_fields(run: Run, licenses: list[str]) -> dict:
    """The fields of the YAML block that the dataset writer leaves to the card.

    Args:
        run: the run.
        licenses: of the clips.
    """
    word = hub_license(licenses)
    return {
        "pretty_name": "MMAIP-V" if run.dataset.name == "mmaip-v" else run.dataset.name,
        "license": word,
        **({"license_name": license_name(licenses)} if word == OTHER else {}),
        "language": ["en"],
        "task_categories": ["video-text-to-text", "visual-question-answering"],
        "tags": ["preference", "dpo", "rlaif", "video", "trl", "mmaip-v"],
        "size_categories": [size_category(sum(run.split_rows.get("preferences", {}).values()))],
    }


def measurements(run: Run) -> dict:
    """What is measured of the rows for the card alone, by the names that its template has for it."""
    judge = reference_judge(run.provenance, [judge["name"] for judge in run.judges])
    answers = {row["response_id"]: row for row in run.responses}
    return {
        "sources": sources(run.questions, run.pairs, run.videos_held),
        "coverage": coverage(run.train_answers, judge),
        "criteria": criterion_means(run.responses),
        "pair_length": length_of_pairs(run.pair_texts),
        "judge_length": length_of_judges(run.responses),
        "agreement": judge_agreement(run.responses),
        "self_judged": self_judged(run.responses),
        "samples": sample_rows(run.pairs, run.question_types, answers),
    }


def zoo_prompts(provenance: dict) -> list[tuple[str, list[str]]]:
    """What members were asked, each wording with the members that got it; empty where nothing says so."""
    found: dict[str, list[str]] = {}
    for member in provenance.get("zoo") or []:
        parts = [member.get("system"), member.get("prompt")]
        words = "\n\n".join(part for part in parts if part)
        if words:
            found.setdefault(words, []).append(member["name"])
    return list(found.items())


def judge_prompts(provenance: dict) -> list[dict]:
    """Every judge's settings as ``provenance.json`` spells them out: ``name, about, hash, texts, rest`` (JSON)."""
    found = []
    for judge in provenance.get("judges") or []:
        for key, settings in (judge.get("settings") or {}).items():
            settings = settings or {}
            texts = [(name.replace("_", " "), settings[name]) for name in PROMPTS if settings.get(name)]
            rest = {name: value for name, value in settings.items() if name not in PROMPTS}
            model = judge.get("model") or ""
            about = [f"kind {judge.get('kind')}"]
            about += [f"model {model}"] if model.count("/") == 1 and not model.startswith((".", "/", "~")) else []
            about += [] if texts else ["without a prompt"]
            listed = json.dumps(rest, indent=1, ensure_ascii=False, sort_keys=True) if rest else ""
            found.append(
                {"name": judge["name"], "about": ", ".join(about), "hash": key, "texts": texts, "rest": listed}
            )
    return found


def fence(text: str, language: str = "text") -> str:
    """A text as a block of code, whatever it holds."""
    ticks = "```"
    while ticks in text:
        ticks += "`"
    return f"{ticks}{language}\n{text.strip()}\n{ticks}"


def factory_key(provenance: dict) -> str:
    """What an export for LLaMA-Factory calls the train split in its ``dataset_info.json``."""
    from dataset_builder.export.jsonl import dataset_info

    return next(iter(dataset_info(provenance.get("name") or "mmaip_v", "train")))


def check_card(text: str, kind: str) -> None:
    """Parse a card with the Hub's own classes and check its fields (`cards.hub_fields`); no network is used.

    Args:
        text: the card.
        kind: ``dataset`` or ``model``.

    Raises:
        KitError: the classes refuse the card, its metadata does not survive a round trip, or a field is not as the Hub
            documents it.
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
    check_fields(again, kind)


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
