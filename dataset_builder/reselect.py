"""A new version of a dataset from its stored scores: other judges, weights or rules, and not one call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dataset_builder.assemble import (
    PAIRS,
    RESPONSE_SCHEMA,
    RESPONSES,
    read_parquet,
    summarise,
    table_facts,
    write_rows,
)
from dataset_builder.build import BuildSummary, check_output, work_folder
from dataset_builder.errors import KitError
from dataset_builder.plan import without_places
from dataset_builder.settings import PairsConfig, load_yaml
from dataset_builder.stages import ShardStore, fingerprint, write_json
from dataset_builder.table import QuestionTable


@dataclass(frozen=True)
class ReselectConfig:
    """Rules of a new version.

    Attributes:
        pairs: which pairs are kept.
        judges: names of the judges that count; null takes all. The scores of the others stay in the dataset.
        weights: weight of a judge, by name; those that are not named keep the weight they were built with.
    """

    pairs: PairsConfig = field(default_factory=PairsConfig)
    judges: list[str] | None = None
    weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        if any(weight < 0 for weight in self.weights.values()):
            raise ValueError("weights must be 0 or more")
        if self.pairs.confirm is not None:
            raise ValueError("pairs.confirm: would ask a judge, and a reselection makes no call")


def load_rules(path: str | Path) -> ReselectConfig:
    """Read the rules' YAML file.

    Raises:
        KitError: the file or one of its values is wrong, in one line.
    """
    return load_yaml(path, ReselectConfig)


def reselect(
    dataset: str | Path,
    rules: ReselectConfig,
    output: Path | str,
    media: dict[str, str] | None = None,
    work: Path | str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    max_shard_mb: int = 256,
) -> BuildSummary:
    """Select again from the scores of a built or downloaded dataset.

    Args:
        dataset: a dataset folder or a Hub id.
        rules: the new rules.
        output: the new dataset folder.
        media: files by sha256, for videos that the dataset does not carry.
        work: folder for what is made on the way.
        overwrite: replace a dataset made with other rules.
        progress: show progress bars.
        max_shard_mb: most megabytes of video in one Parquet file.

    Returns:
        The summary, with ``stability`` (how far the selection is from the old one) and ``videos_absent``: videos that
        the dataset does not carry and ``media`` does not name; they are null in the new version.

    Raises:
        KitError: no such dataset, no usable judge, or a folder that may not be replaced.
    """
    from dataset_builder import mmaip_v
    from dataset_builder.disassemble import assembled_from_dataset
    from dataset_builder.selection import compare_selections, select

    output = Path(output)
    work = work_folder(output, work)
    if Path(dataset).resolve() == output.resolve():
        raise KitError(f"--output {output}: is the dataset that is read; a new version needs another folder")
    store = ShardStore(work)
    with store.lock():
        store.clean()
        mmaip_v.recover(output)
        found = assembled_from_dataset(dataset, work, media)
        old = found.provenance
        weights = new_weights(old, rules, work)
        plain = {"pairs": asdict(rules.pairs), "weights": weights}
        key = fingerprint({"from": old.get("fingerprint"), "rules": plain, "videos": found.videos_present})
        check_output(output, key, overwrite)
        table = QuestionTable(work / "questions.arrow")
        before = work / "assembled" / "pairs-before.parquet"
        (work / PAIRS).replace(before)
        old_weights = stored_weights(old)
        if weights != old_weights:
            weigh(work, weights)
        chosen = select(table, work / RESPONSES, rules.pairs, weights, work, progress=progress)
        chosen["stability"] = compare_selections(work / RESPONSES, before, work / PAIRS, old_weights, weights)
        summary = {
            **table_facts(table),
            "answers": found.responses,
            "pairs": chosen["pairs"],
            "drops": chosen["drops"],
            "excluded": chosen["excluded"],
            "errors": {},
            "rejected": {},
        }
        said = {
            **old,
            "reselected_from": old.get("fingerprint"),
            "rules": {"pairs": without_places(asdict(rules.pairs)), "weights": weights},
            "pairs": without_places(asdict(rules.pairs)),
            "config_hash": key,
            "fingerprint": key,
            "videos_absent": found.videos_absent,
            "summary": summary,
        }
        write_json(work / "selection.json", chosen)
        mmaip_v.write_dataset(
            work,
            output,
            embed=True,
            extra={"provenance.json": said, "selection.json": chosen},
            max_shard_size=f"{max_shard_mb}MB",
        )
        before.unlink()
    more = {"stability": chosen["stability"], "videos_absent": found.videos_absent}
    return BuildSummary(**summary, **more, dataset=str(output), fingerprint=key)


def stored_weights(provenance: dict) -> dict[str, float]:
    """Weight of each judge as the dataset was built."""
    rules = provenance.get("rules", {}).get("weights")
    return rules or {judge["name"]: float(judge["weight"]) for judge in provenance.get("judges", [])}


def new_weights(provenance: dict, rules: ReselectConfig, work: Path) -> dict[str, float]:
    """Weights under the new rules: judges that do not count have weight 0.

    Raises:
        KitError: a judge is named that the dataset does not know, or none is left.
    """
    weights = stored_weights(provenance) or {name: 1.0 for name in _judges_in(work)}
    for name in [*rules.weights, *(rules.judges or [])]:
        if name not in weights:
            raise KitError(f"judge '{name}': has no scores in this dataset; it has {', '.join(sorted(weights))}")
    weights |= rules.weights
    if rules.judges is not None:
        weights = {name: weight if name in rules.judges else 0.0 for name, weight in weights.items()}
    if not any(weights.values()):
        raise KitError("judges: every weight is 0, so nothing would decide")
    return weights


def _judges_in(work: Path) -> list[str]:
    names: set[str] = set()
    for row in read_parquet(work / RESPONSES, columns=["scores"]):
        names.update(score["judge"] for score in row["scores"])
    return sorted(names)


def weigh(work: Path, weights: dict[str, float]) -> None:
    """Compute ``score`` of all stored answers anew, with other weights."""

    def rows() -> Iterator[dict]:
        for row in read_parquet(work / RESPONSES):
            row["score"], row["disagreement"] = summarise(row["scores"], weights)
            yield row

    new = work / "assembled" / "responses-weighed.parquet"
    write_rows(rows(), new, RESPONSE_SCHEMA)
    new.replace(work / RESPONSES)
