"""The pipeline: sources → answers of the zoo → judge scores → pairs → dataset folder."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dataset_builder import plan
from dataset_builder.answers import mark_duplicates
from dataset_builder.config import BuildConfig
from dataset_builder.errors import KitError, RowError
from dataset_builder.judges.base import aggregate, disagreement
from dataset_builder.pairs import Selection, select_pairs
from dataset_builder.pool import run_stages
from dataset_builder.sources import Question, read_source
from dataset_builder.stages import ShardStore, canonical_json, write_atomic, write_json
from dataset_builder.worker import Job, read_responses, read_scores

_DIGITS = 9


class BuildSummary(dict):
    """What a build made: ``clips, questions, answers, pairs, drops, excluded, rejected, splits, dataset, fingerprint``.

    ``questions == pairs + sum(drops.values())``; ``excluded`` counts answers that were not compared, by flag;
    ``rejected`` counts input rows that could not be used, by reason.
    """

    def __str__(self) -> str:
        def counts(title: str, values: dict[str, int]) -> str:
            return f"{title:<10} {sum(values.values())}" + "".join(f"\n  {n:>8}  {k}" for k, n in values.items())

        lines = [f"{key:<10} {self[key]}" for key in ("clips", "questions", "answers", "pairs")]
        lines.append(counts("drops", self["drops"]))
        if self["excluded"]:
            lines.append(counts("excluded", self["excluded"]) + "\n  (answers that were not compared)")
        lines.append(counts("rejected", self["rejected"]))
        return "\n".join([*lines, f"{'dataset':<10} {self['dataset']}"])


def build(
    config: BuildConfig,
    output: Path | str,
    work: Path | str | None = None,
    limit: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
    workers: int = 1,
) -> BuildSummary:
    """Build the dataset folder, going on from whatever an earlier run of the same build has finished.

    Args:
        config: what to build.
        output: the dataset folder.
        work: folder of stage shards; ``.NAME-work`` beside the dataset by default.
        limit: use only the first so many questions of the source.
        progress: show progress bars on stderr.
        overwrite: replace a dataset folder that was made from another config.
        workers: processes that sample and judge. The result does not depend on it.

    Returns:
        The summary, which is also in the dataset's ``provenance.json``.

    Raises:
        KitError: the build cannot run; nothing was replaced.
    """
    from dataset_builder import mmaip_v

    output = Path(output)
    work = work_folder(output, work)
    config_hash = plan.config_hash(config, limit)
    store = ShardStore(work)
    with store.lock():
        store.clean()
        mmaip_v.recover(output)
        old = check_output(output, config_hash, overwrite)
        log = RunLog(work)
        with log.stage("sources"):
            questions, rejected = load_questions(config, limit, work, progress)
            job = plan.make_job(config, questions, work)
            key = plan.build_fingerprint(config_hash, job, questions, rejected)
        if old is not None and old.get("fingerprint") == key and mmaip_v.is_intact(output, old):
            return BuildSummary(**old["summary"], dataset=str(output), fingerprint=key)
        with log.stage("generate"):
            run_stages(job, workers, progress)
        with log.stage("assemble"):
            responses = collect(job, store, config)
            selection, weights = select(config, questions, responses)
            assemble(work, config, questions, responses, selection)
        summary = {
            "clips": len({q.sha256 for q in questions}),
            "questions": len(questions),
            "answers": sum(len(rows) for rows in responses.values()),
            "pairs": len(selection.pairs),
            "drops": selection.drops,
            "excluded": selection.excluded,
            "rejected": dict(sorted(Counter(error.kind for error in rejected).items())),
            "splits": dict(sorted(Counter(q.split for q in questions).items())),
        }
        chosen = selection_record(config, selection, weights)
        write_json(work / "selection.json", chosen)
        provenance = plan.provenance(config, job, config_hash, key, limit, responses) | {"summary": summary}
        with log.stage("write"):
            mmaip_v.write_dataset(
                work,
                output,
                embed=True,
                extra={"provenance.json": provenance, "selection.json": chosen},
                max_shard_size=f"{config.max_shard_mb}MB",
            )
    return BuildSummary(**summary, dataset=str(output), fingerprint=key)


def work_folder(output: Path, work: Path | str | None = None) -> Path:
    """The work folder of a dataset folder: ``.NAME-work`` beside it, unless one is given.

    Raises:
        KitError: the dataset folder has no name of its own.
    """
    if output.name in ("", ".."):
        raise KitError(f"--output {output}: give the dataset folder a name, such as {output / 'mmaip-v'}")
    return Path(work) if work is not None else output.with_name(f".{output.name}-work")


def check_output(output: Path, config_hash: str, overwrite: bool) -> dict | None:
    """Refuse to replace what this build should not replace.

    Returns:
        The provenance of the dataset that is there, or None when there is none.

    Raises:
        KitError: the folder is not a dataset of the kit, or was made from another config and ``overwrite`` is False.
    """
    from dataset_builder.mmaip_v import read_provenance

    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    old = read_provenance(output)
    if old is None or "config_hash" not in old:
        raise KitError(f"{output} exists and is not a dataset folder of this kit: choose another --output")
    if old["config_hash"] != config_hash and not overwrite:
        raise KitError(
            f"{output} was made from another config (or with another --limit): choose another --output, or give "
            "--overwrite to replace it"
        )
    return old


def load_questions(
    config: BuildConfig, limit: int | None, work: Path, progress: bool
) -> tuple[list[Question], list[RowError]]:
    """Read the source and leave ``media.json`` and ``rejected.jsonl`` in the work folder.

    Returns:
        Questions sorted by video and id, and the rows that could not be used.
    """
    questions, rejected = read_source(config.source, config.split, progress=progress)
    questions = sorted(questions[:limit], key=lambda q: (q.sha256, q.question_id))
    write_json(work / "media.json", {q.sha256: q.path for q in questions})
    lines = [
        canonical_json({"file": e.file, "row": e.row, "field": e.field, "kind": e.kind, "reason": e.reason}) + "\n"
        for e in rejected
    ]
    write_atomic(work / "rejected.jsonl", "".join(lines))
    if not questions:
        more = f" (and {len(rejected) - 1} more rows)" if len(rejected) > 1 else ""
        raise KitError(f"{config.source.questions}: no usable question is left: {rejected[0]}{more}")
    return questions, rejected


def collect(job: Job, store: ShardStore, config: BuildConfig) -> dict[str, list[dict]]:
    """Answers with all their scores, by question id: the full rows of the ``responses`` config."""
    weights = judge_weights(config)
    by_question: dict[str, list[dict]] = {q["question_id"]: [] for q in job.questions}
    for block in range(job.block_count):
        rows = read_responses(job, store, block)
        if rows is None:
            raise KitError(f"answers of block {block} are missing in {job.work}: run the same command again")
        scores: dict[str, list[dict]] = {row["response_id"]: [] for row in rows}
        for judge in job.judges:
            for judged in read_scores(job, store, judge, block, rows) or _missing(job, block):
                scores[judged["response_id"]] += judged["scores"]
        for row in rows:
            full = {**row, "scores": scores[row["response_id"]]}
            full["score"], full["disagreement"] = summarise(full["scores"], weights)
            by_question[row["question_id"]].append(full)
    for rows in by_question.values():
        mark_duplicates(rows)
    return by_question


def _missing(job: Job, block: int) -> Any:
    raise KitError(f"scores of block {block} are missing in {job.work}: run the same command again")


def summarise(scores: list[dict], weights: dict[str, float]) -> tuple[float | None, float | None]:
    """Aggregate of all judges (None when one is missing), and their disagreement.

    Both are from 0 to 1; the disagreement is None with fewer than two judges that scored the answer.
    """
    total, spread = aggregate(scores, weights), disagreement(scores)
    return (None if total is None else round(total, _DIGITS)), (None if spread is None else round(spread, _DIGITS))


def judge_weights(config: BuildConfig) -> dict[str, float]:
    """Weight of each judge in the aggregate, by the judge's name."""
    return {spec.name: float(spec.weight) for spec in config.judges}


def select(
    config: BuildConfig, questions: list[Question], responses: dict[str, list[dict]]
) -> tuple[Selection, dict[str, float]]:
    """Pairs over all questions, with the weights they were selected with."""
    weights = judge_weights(config)
    rows = ((q.question_id, q.split, responses[q.question_id]) for q in questions)
    return select_pairs(rows, config.pairs.min_margin, weights), weights


def selection_record(config: BuildConfig, selection: Selection, weights: dict[str, float]) -> dict:
    """What ``selection.json`` says: the rule, the counts, and what became of every question."""
    return {
        "rule": {"kind": "best_against_worst", "min_margin": config.pairs.min_margin, "weights": weights},
        "pairs": len(selection.pairs),
        "drops": selection.drops,
        "excluded": selection.excluded,
        "dropped": {o.question_id: o.drop for o in selection.outcomes if o.drop},
        "judges": {p.question_id: list(p.judges) for p in selection.pairs if set(p.judges) != set(weights)},
    }


def assemble(
    work: Path,
    config: BuildConfig,
    questions: list[Question],
    responses: dict[str, list[dict]],
    selection: Selection,
) -> None:
    """Write the rows that the final writer reads into ``work/assembled``, sorted by video and question."""
    folder = work / "assembled"

    def put(name: str, rows: Iterator[dict]) -> None:
        write_atomic(folder / name, "".join(canonical_json(row) + "\n" for row in rows))

    put("questions.jsonl", (plan.question_row(q) for q in questions))
    put("responses.jsonl", (row for q in questions for row in responses[q.question_id]))
    answers = {row["response_id"]: row for rows in responses.values() for row in rows}
    put(
        "pairs.jsonl",
        (
            {
                **asdict(pair),
                "response_id_chosen": pair.chosen,
                "response_id_rejected": pair.rejected,
                "chosen": answers[pair.chosen]["response"],
                "rejected": answers[pair.rejected]["response"],
                "model_chosen": answers[pair.chosen]["model"],
                "model_rejected": answers[pair.rejected]["model"],
            }
            for pair in selection.pairs
        ),
    )
    videos = {q.video_id: {"path": q.path, "sha256": q.sha256} for q in questions if plan.may_embed(config, q)}
    write_json(folder / "videos.json", videos)


class RunLog:
    """Seconds by stage in ``run_log.json``, added up over sittings; kept apart from everything that is compared."""

    def __init__(self, work: Path):
        self.path = work / "run_log.json"
        try:
            self.stages: dict[str, float] = json.loads(self.path.read_text())["stages"]
        except (OSError, ValueError, KeyError):
            self.stages = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; a stage that fails or is stopped counts too."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stages[name] = round(self.stages.get(name, 0.0) + time.perf_counter() - start, 3)
            write_json(self.path, {"stages": self.stages})
