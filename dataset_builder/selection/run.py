"""The selection: from stored answers (or ready-made pairs) to the pairs of the dataset, and an account of all else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataset_builder.assemble import PAIR_SCHEMA, PAIRS, beside, read_parquet
from dataset_builder.errors import KitError
from dataset_builder.imported import IMPORTED, imported_id
from dataset_builder.selection import pairs as rules
from dataset_builder.selection.agreement import Agreement
from dataset_builder.selection.balance import length_report, surplus
from dataset_builder.selection.candidates import Candidates, CandidateWriter, find_candidates
from dataset_builder.selection.caps import beyond, over_share, widest_first
from dataset_builder.selection.diversity import Diversity
from dataset_builder.selection.duplicates import drop_duplicates
from dataset_builder.selection.fates import Fates, dropped_ids, write_outcomes
from dataset_builder.selection.leaks import drop_leaks
from dataset_builder.selection.scored import read_scored
from dataset_builder.selection.similar import answer_labels, embedder
from dataset_builder.settings import PairsConfig
from dataset_builder.table import QuestionTable
from dataset_builder.text import normalise

OUTCOMES = "assembled/outcomes.parquet"
SPELLED_OUT = 10_000  # most questions of which selection.json names every one that gave no pair
_CHUNK = 256  # pairs that are confirmed together
_ROWS = 8192


def select(
    questions: QuestionTable,
    responses: Path,
    config: PairsConfig,
    weights: dict[str, float] | None,
    work: Path,
    confirmer: Any = None,
    progress: bool = False,
) -> dict:
    """Select the pairs of a build from its answers and scores.

    Args:
        questions: all questions.
        responses: ``responses.parquet``, in the questions' order.
        config: the rules.
        weights: of the judges, by name; None weighs all alike.
        work: the work folder; ``assembled/pairs.parquet`` and ``assembled/outcomes.parquet`` are written there.
        confirmer: ``confirm_many(pairs) -> [.confirmed, .flipped, .error]``, asked when the config wants it.
        progress: show progress bars.

    Returns:
        The content of ``selection.json``: ``rule, pairs, drops`` (questions without a pair, by reason), ``excluded``
        (answers that were not compared, by flag), ``candidate_pairs, pair_drops`` (pairs that went, by reason),
        ``length, diversity, disagreement, decontamination``, what became of ``confirm`` (None when no pair judge was
        asked), and up to 10,000 questions ``dropped`` and ``judges`` by question.
        ``questions = questions_with_pairs + sum(drops)`` and ``candidate_pairs = pairs + sum(pair_drops)``.

    Raises:
        KitError: the answers are not those of these questions, an evaluation set cannot be read, or the share of a
            member cannot hold.
    """
    fates, leaks = _before(questions, config, work)
    agreement = Agreement()
    encode = embedder(config.diversity_model) if config.diversity_model else None
    diversity = Diversity(len(questions), encode)
    found, excluded = find_candidates(
        questions,
        read_scored(responses),
        config,
        weights,
        fates,
        work / "selection" / "candidates.parquet",
        answer_labels(config.dedup),
        watch=(agreement, diversity),
    )
    record = _finish(questions, found, fates, config, work, confirmer, progress, weights)
    record["excluded"] = {key: count for key, count in sorted(excluded.items()) if count}
    record["decontamination"], record["diversity"] = leaks, diversity.report()
    record["disagreement"] = agreement.report()
    return record


def filter_imported(
    questions: QuestionTable,
    imported: Path,
    config: PairsConfig,
    work: Path,
    confirmer: Any = None,
    progress: bool = False,
) -> dict:
    """Put ready-made pairs through the rules that need no judge, and through the others where they have scores.

    Args:
        questions: all questions.
        imported: Parquet file of ``question_id, chosen, rejected, model_chosen, model_rejected, score_chosen,
            score_rejected`` in the questions' order; models and scores may be null. Every row is a candidate pair.
        config, work, confirmer, progress: see :func:`select`.

    Returns:
        As :func:`select`; ``excluded`` counts rows, by reason, that are no pair by themselves or fail a rule on scores.

    Raises:
        KitError: as :func:`select`.
    """
    fates, leaks = _before(questions, config, work)
    excluded: Counter = Counter()
    with CandidateWriter(work / "selection" / "candidates.parquet") as writer:
        for position, (question, rows) in enumerate(beside(questions, read_parquet(imported))):
            if fates.codes[position]:
                continue
            kept, drop = [], rules.NO_ANSWERS
            for row in rows:
                made, drop = _ready_made(question["question_id"], row, config)
                if made is None:
                    excluded[drop] += 1
                else:
                    kept.append(made)
            kept = list({(row[1], row[2]): row for row in reversed(kept)}.values())  # a repeated pair counts once
            kept.sort(key=lambda row: (-1.0 if row[9] is None else -row[9] - 2, row[1], row[2]))
            if not kept:
                fates.set(position, drop)
            for row in kept:
                writer.add(position, row)
    record = _finish(questions, writer.found, fates, config, work, confirmer, progress, None)
    record |= {"excluded": dict(sorted(excluded.items())), "decontamination": leaks}
    return record | {"diversity": None, "disagreement": None}


def _before(questions: QuestionTable, config: PairsConfig, work: Path) -> tuple[Fates, dict]:
    """Reasons that hold whatever the answers are: test split, then leak, then duplicate."""
    (work / "selection").mkdir(parents=True, exist_ok=True)
    (work / PAIRS).parent.mkdir(parents=True, exist_ok=True)
    fates, start = Fates(len(questions)), 0
    for number in range(questions.block_count):
        split = questions.batch(number).column("split")
        fates.set(start + np.flatnonzero(np.array(split.to_pylist()) == "test"), rules.HELD_OUT)
        start += len(split)
    leaks = drop_leaks(questions, config.decontaminate, fates)
    drop_duplicates(questions, config.dedup, fates, work)
    return fates, leaks


def _ready_made(question_id: str, row: dict, config: PairsConfig) -> tuple[tuple | None, str | None]:
    """One imported row as a candidate pair, or the reason why it is none."""
    chosen, rejected = normalise(row["chosen"]), normalise(row["rejected"])
    if not chosen or not rejected:
        return None, "empty"
    if chosen == rejected:
        return None, rules.IDENTICAL
    high, low, margin = row["score_chosen"], row["score_rejected"], None
    if high is not None and low is not None:
        margin = round(high - low, 9)
        if margin <= 0:
            return None, rules.TIE
        if margin < config.min_margin:
            return None, rules.MARGIN
    if config.min_chosen is not None and high is not None and high < config.min_chosen:
        return None, rules.CHOSEN_LOW
    if config.max_rejected is not None and low is not None and low > config.max_rejected:
        return None, rules.REJECTED_HIGH
    ids = [imported_id(question_id, row[side]) for side in ("chosen", "rejected")]
    models = [row[f"model_{side}"] or IMPORTED for side in ("chosen", "rejected")]
    return (question_id, *ids, row["chosen"], row["rejected"], *models, high, low, margin, []), None


def _finish(
    questions: QuestionTable,
    found: Candidates,
    fates: Fates,
    config: PairsConfig,
    work: Path,
    confirmer: Any,
    progress: bool,
    weights: dict[str, float] | None,
) -> dict:
    """The rules over all pairs together, then ``pairs.parquet`` and the account."""
    going = Fates(len(found))
    place, margin = found.column("question"), found.column("margin")
    if config.select == "all":
        going.set(np.flatnonzero(found.column("rank") >= config.max_per_question), rules.QUESTION_CAP)
    if config.max_per_video is not None:
        free, videos = going.free(), _videos(questions)
        over = beyond(videos[place[free]], widest_first(margin[free]), config.max_per_video)
        going.set(free[over], rules.VIDEO_CAP)
    confirmed = None
    if config.confirm is not None:
        if confirmer is None:
            raise KitError("pairs.confirm: needs a pair judge, and none can be asked here; leave it out")
        confirmed = _confirm(found, going, confirmer, progress)
    free = going.free()
    before = length_report(found.column("chosen")[free], found.column("rejected")[free])
    _even_out(found, going, config)
    free = going.free()
    pairs = np.bincount(place[free], minlength=len(questions))
    small = len(questions) <= SPELLED_OUT
    judges = _write_pairs(found, going, work / PAIRS, weights if small else None)
    first = np.flatnonzero(found.column("rank") == 0)
    for index in first[pairs[place[first]] == 0].tolist():
        fates.set(place[index], going[index])
    record = {
        "rule": _rule(config, weights),
        "questions": len(questions),
        "questions_with_pairs": int((pairs > 0).sum()),
        "pairs": len(free),
        "drops": fates.counts(),
        "candidate_pairs": len(found),
        "pair_drops": going.counts(),
        "confirm": confirmed,
        "length": {"before": before, "after": length_report(*(found.column(n)[free] for n in ("chosen", "rejected")))},
    }
    (work / OUTCOMES).unlink(missing_ok=True)
    if small:
        record |= {"dropped": dropped_ids(questions, fates), "judges": judges}
    else:
        write_outcomes(questions, fates, pairs, work / OUTCOMES)
    found.path.unlink()
    return record


def _even_out(found: Candidates, going: Fates, config: PairsConfig) -> None:
    """Shares of members and balance of lengths, in turn until all of them hold; each only drops pairs."""
    margin, lengths = found.column("margin"), [found.column(name) for name in ("chosen", "rejected")]
    caps = [
        (rules.CHOSEN_CAP, config.max_chosen_per_member, found.column("member_chosen")),
        (rules.REJECTED_CAP, config.max_rejected_per_member, found.column("member_rejected")),
    ]
    left = None
    while left != (left := int((going.codes == 0).sum())):
        for reason, share, members in caps:
            if share is not None:
                free = going.free()
                over = over_share(members[free], margin[free], share, len(found.members), reason)
                going.set(free[over], reason)
        if config.balance_length:
            free = going.free()
            going.set(free[surplus(lengths[0][free], lengths[1][free], margin[free])], rules.BALANCE)


def _confirm(found: Candidates, going: Fates, confirmer: Any, progress: bool) -> dict[str, Any]:
    """Ask about the pairs that are left, in the questions' order, chunk by chunk.

    Returns:
        ``pairs`` asked about; ``confirmed``, ``flips`` (another winner in the other order) and ``errors`` among them;
        ``flip_rate``, the share of flips among those without an error (None without any).
    """
    from tqdm import tqdm

    counts = Counter(pairs=0, confirmed=0, flips=0, errors=0)

    def ask(chunk: list[dict], places: list[int]) -> None:
        for index, verdict in zip(places, confirmer.confirm_many(chunk), strict=True):
            counts["pairs"] += 1
            counts["confirmed"] += verdict.confirmed
            counts["flips"] += verdict.flipped
            counts["errors"] += verdict.error is not None
            if verdict.error is not None:
                going.set(index, rules.CONFIRM_ERROR)
            elif not verdict.confirmed:
                going.set(index, rules.UNCONFIRMED)
            bar.update()

    chunk, places = [], []
    with tqdm(total=len(going.free()), desc="confirming", unit="pair", disable=not progress) as bar:
        for index, row in enumerate(read_parquet(found.path)):
            if going.codes[index] == 0:
                chunk.append(row)
                places.append(index)
            if len(chunk) == _CHUNK:
                ask(chunk, places)
                chunk, places = [], []
        if chunk:
            ask(chunk, places)
    decided = counts["pairs"] - counts["errors"]
    return {**counts, "flip_rate": counts["flips"] / decided if decided else None}


def _write_pairs(found: Candidates, going: Fates, path: Path, weights: dict[str, float] | None) -> dict:
    """Write the pairs that are left; returns the judges of those not made by all judges of ``weights``."""
    judges, start = {}, 0
    new = path.with_name(f".{path.name}.tmp")
    with pq.ParquetWriter(new, PAIR_SCHEMA) as writer:
        for batch in pq.ParquetFile(found.path).iter_batches(_ROWS):
            kept = batch.filter(pa.array(going.codes[start : start + batch.num_rows] == 0))
            start += batch.num_rows
            writer.write_batch(kept)
            if weights is not None:
                for key, names in zip(kept["question_id"].to_pylist(), kept["judges"].to_pylist()):
                    if set(names) != set(weights):
                        judges[key] = names
    new.replace(path)
    return judges


def _videos(questions: QuestionTable) -> np.ndarray:
    """A number for the video of each question; the table is sorted by video."""
    numbers, last, count = np.zeros(len(questions), dtype=np.int64), None, -1
    for position, sha256 in enumerate(_column(questions, "sha256")):
        count += sha256 != last
        last = sha256
        numbers[position] = count
    return numbers


def _column(questions: QuestionTable, name: str) -> Iterator[Any]:
    for number in range(questions.block_count):
        yield from questions.batch(number).column(name).to_pylist()


def _rule(config: PairsConfig, weights: dict[str, float] | None) -> dict:
    """The rules without places on this machine and without how an endpoint is reached."""
    plain = asdict(config)
    for entry in plain["decontaminate"]:
        for name in ("dataset", "questions", "videos"):
            entry.pop(name)
    for part, key in ((plain["dedup"], "model"), (plain, "diversity_model"), (plain["confirm"] or {}, "model")):
        if part.get(key):
            part[key] = Path(part[key]).name
    if plain["confirm"]:
        plain["confirm"].pop("endpoint")
    return {"kind": "best_against_worst" if config.select == "best_worst" else "all_pairs", **plain, "weights": weights}
