"""The pipeline: sources → answers of the zoo → judge scores → pairs → dataset folder."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dataset_builder import plan
from dataset_builder.assemble import RESPONSES, Facts, collect, table_facts, write_responses
from dataset_builder.errors import KitError
from dataset_builder.settings import BuildConfig
from dataset_builder.stages import ShardStore, write_json
from dataset_builder.stages.job import Job, is_remote
from dataset_builder.stages.pool import follow_ranks, forget_errors, run_stages
from dataset_builder.stages.ranks import Ranks
from dataset_builder.table import QuestionTable

_RANKS = "jobs/ranks.json"


class BuildSummary(dict):
    """What a build made: ``clips, questions, answers, pairs, drops, excluded, rejected, errors, splits, dataset, …``.

    ``drops`` counts questions that gave no pair, by reason; ``excluded`` answers that were not compared, by flag;
    ``rejected`` input rows that could not be used; ``errors`` calls that failed for good, by member or judge.
    """

    def __str__(self) -> str:
        def counts(title: str, values: dict[str, int]) -> str:
            return f"{title:<10} {sum(values.values())}" + "".join(f"\n  {n:>8}  {k}" for k, n in values.items())

        lines = [f"{key:<10} {self[key]}" for key in ("clips", "questions", "answers", "pairs")]
        lines.append(counts("drops", self["drops"]))
        if self["excluded"]:
            lines.append(counts("excluded", self["excluded"]) + "\n  (answers that were not compared)")
        lines.append(counts("rejected", self["rejected"]))
        if self["errors"]:
            lines.append(counts("errors", self["errors"]) + "\n  (failed for good; --retry-errors asks again)")
        return "\n".join([*lines, f"{'dataset':<10} {self['dataset']}"])


def build(
    config: BuildConfig,
    output: Path | str,
    work: Path | str | None = None,
    limit: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
    workers: int = 1,
    retry_errors: bool = False,
) -> BuildSummary | None:
    """Build the dataset folder, going on from whatever an earlier run of the same build has finished.

    Args:
        config: what to build.
        output: the dataset folder.
        work: folder of stage shards; ``.NAME-work`` beside the dataset by default.
        limit: use only the first so many questions of the sources.
        progress: show progress bars on stderr.
        overwrite: replace a dataset folder that was made from another config.
        workers: processes that sample and judge with local models. The result does not depend on it.
        retry_errors: ask endpoints again for what failed in an earlier run.

    Returns:
        The summary, which is also in the dataset's ``provenance.json``; None in the processes that ``accelerate
        launch`` started beside the first.

    Raises:
        KitError: the build cannot run; nothing was replaced.
        BudgetReached: an endpoint's spend limit; everything paid for is kept.
    """
    output = Path(output)
    work = work_folder(output, work)
    ranks = Ranks.here()
    if ranks and not ranks.is_main:
        ranks.wait()
        job = json.loads((work / _RANKS).read_text())
        if job is not None:
            follow_ranks(ranks, Job(**job))
        return None
    store = ShardStore(work)
    with store.lock():
        store.clean()
        build_ = BuildSteps(config, output, work, limit, progress, overwrite, retry_errors)
        job = build_.plan()
        if ranks:
            write_json(work / _RANKS, None if job is None else asdict(job))
            ranks.wait()
        if job is None:
            return build_.done
        if retry_errors:
            forget_errors(job)
        with build_.log.stage("generate"):
            run_stages(job, workers, progress, ranks)
        return build_.finish(job)


class BuildSteps:
    """One build's steps around the stages; :func:`build` and the executors call them."""

    def __init__(
        self,
        config: BuildConfig,
        output: Path,
        work: Path,
        limit: int | None,
        progress: bool,
        overwrite: bool,
        retry_errors: bool = False,
    ):
        self.retry_errors = retry_errors
        self.config, self.output, self.work, self.limit, self.progress = config, output, work, limit, progress
        self.config_hash = plan.config_hash(config, limit)
        self.overwrite, self.log = overwrite, RunLog(work)
        self.done: BuildSummary | None = None
        self.key, self.rejected = "", {}

    def planned(self, key: str, rejected: dict[str, int]) -> None:
        """Take the build's fingerprint and rows left out from another process that did :meth:`plan`."""
        self.key, self.rejected = key, rejected

    def plan(self) -> Job | None:
        """Read the sources and resolve the models; None, with ``done`` set, when the dataset is there already."""
        from dataset_builder import mmaip_v

        mmaip_v.recover(self.output)
        old = check_output(self.output, self.config_hash, self.overwrite)
        with self.log.stage("sources"):
            self.rejected = load_questions(self.config, self.limit, self.work, self.progress).rejected
            job = plan.make_job(self.config, self.work)
            self.key = plan.build_fingerprint(
                self.config_hash, job, job.table, self.rejected, imported_key(self.config, self.work)
            )
        heal = self.retry_errors and old is not None and old["summary"]["errors"]
        if old is not None and old.get("fingerprint") == self.key and mmaip_v.is_intact(self.output, old) and not heal:
            self.done = BuildSummary(**old["summary"], dataset=str(self.output), fingerprint=self.key)
            return None
        return job

    def finish(self, job: Job) -> BuildSummary:
        """Collect, select, write."""
        from dataset_builder import mmaip_v

        table = job.table
        with self.log.stage("assemble"):
            facts, chosen = self._rows(job, table)
        with self.log.stage("write"):
            summary = {
                **table_facts(table),
                "answers": facts.answers,
                "pairs": chosen["pairs"],
                "drops": chosen["drops"],
                "excluded": chosen["excluded"],
                "errors": failed_calls(facts, job),
                "rejected": self.rejected,
            }
            write_json(self.work / "selection.json", chosen)
            said = plan.provenance(self.config, job, self.config_hash, self.key, self.limit, facts)
            mmaip_v.write_dataset(
                self.work,
                self.output,
                embed=not self.config.ids_only,
                extra={"provenance.json": said | {"summary": summary}, "selection.json": chosen},
                max_shard_size=f"{self.config.max_shard_mb}MB",
            )
        return BuildSummary(**summary, dataset=str(self.output), fingerprint=self.key)

    def _rows(self, job: Job, table: QuestionTable) -> tuple[Any, dict]:
        from dataset_builder.selection import filter_imported, select

        confirmer = make_confirmer(self.config, table, self.work)
        common = {"confirmer": confirmer, "progress": self.progress}
        if self.config.imports:
            from dataset_builder.imported import write_imported_responses

            facts = write_imported_responses(self.work)
            imported = self.work / "imported.parquet"
            return facts, filter_imported(table, imported, self.config.pairs, self.work, **common)
        weights = plan.judge_weights(self.config)
        facts = write_responses(collect(job, weights), self.work)
        return facts, select(table, self.work / RESPONSES, self.config.pairs, weights, self.work, **common)


def failed_calls(facts: Facts, job: Job) -> dict[str, int]:
    """Answers and verdicts that an endpoint failed to give, by member or judge."""
    names = {entry["name"] for entry in [*job.members, *job.judges] if is_remote(entry)}
    return {name: count for name, count in sorted(facts.errors.items()) if name in names}


def make_confirmer(config: BuildConfig, table: QuestionTable, work: Path) -> Any:
    """The pair judge over a build's questions, or None when pairs are not confirmed."""
    if config.pairs.confirm is None:
        return None
    from dataset_builder.confirm import Confirmer

    return Confirmer(config.pairs.confirm, table, work)


def imported_key(config: BuildConfig, work: Path) -> str:
    """Fingerprint of imported preference rows; empty without any."""
    if not config.imports:
        return ""
    from dataset_builder.media import file_sha256

    return file_sha256(work / "imported.parquet")


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


def load_questions(config: BuildConfig, limit: int | None, work: Path, progress: bool) -> Any:
    """Read the sources into the work folder: ``questions.arrow``, ``media.json`` and ``rejected.jsonl``.

    Returns:
        The :class:`~dataset_builder.sources.SourceReport`.

    Raises:
        KitError: a source cannot be read, or no usable question is left.
    """
    from dataset_builder.sources import read_sources

    with _generator_cache(config, work) as cache:
        report = read_sources(
            config.sources, config.split, work, config.block_size, limit=limit, progress=progress, cache=cache
        )
    if not report.questions:
        count = sum(report.rejected.values())
        more = f" (and {count - 1} more rows)" if count > 1 else ""
        raise KitError(f"no usable question is left: {report.first_error}{more}")
    return report


@contextmanager
def _generator_cache(config: BuildConfig, work: Path) -> Iterator[Any]:
    """The call cache, when an endpoint writes questions."""
    if not any(source.kind == "generated" and source.member.endpoint for source in config.sources):
        yield None
        return
    from dataset_builder.models import CallCache
    from dataset_builder.stages.job import CALL_CACHE

    cache = CallCache(work / CALL_CACHE)
    try:
        yield cache
    finally:
        cache.close()


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
