"""Which of LightEval's functions are replaced, and by what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
from lighteval.logging.info_loggers import MetricsLogger
from lighteval.pipeline import Pipeline
from lighteval.tasks.lighteval_task import LightevalTask, LightevalTaskConfig
from lighteval.tasks.registry import Registry

from dataset_builder.errors import KitError
from eval.benchmarks import metadata
from eval.lighteval_adapter.documents import VideoTaskConfig, load_task_rows
from eval.lighteval_adapter.endings import patch_endings
from eval.lighteval_adapter.vision import patch_vision_model

TASK_FILE = Path(__file__).parent.with_name("tasks.py")
_OF_ONE_TASK = ("_stderr", "_ci95_lo", "_ci95_hi")  # averaged over tasks, these say nothing
_ORIGINALS: dict[str, Callable] = {}


def install() -> None:
    """Make LightEval behave as the package's docstring says; calling it again changes nothing."""
    if not _ORIGINALS:
        _ORIGINALS.update(
            dataset=LightevalTask.download_dataset_worker,
            configs=Registry._update_task_configs,
            tasks=Pipeline._init_tasks_and_requests,
            aggregate=MetricsLogger.aggregate,
        )
    Registry.load_all_task_configs = staticmethod(_load_task_configs)
    Registry.print_all_tasks = _print_tasks
    Registry.get_tasks_dump = _dump_tasks
    Registry._update_task_configs = _update_task_configs
    LightevalTask.download_dataset_worker = staticmethod(_load_task_dataset)
    Pipeline._init_tasks_and_requests = _init_tasks
    MetricsLogger.aggregate = _aggregate
    patch_vision_model()
    patch_endings()
    # LightEval reads its prediction cache as a "parquet" dataset, which datasets reports to a counter on the network.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False


def _load_task_configs(custom_tasks=None, load_multilingual: bool = False) -> dict[str, LightevalTaskConfig]:
    source = custom_tasks or TASK_FILE
    if isinstance(source, str) and source.endswith(".py") and not Path(source).is_file():
        raise KitError(f"{source}: no such task file")
    return Registry._extract_configs(Registry.create_custom_tasks_module(source))


def _print_tasks(self: Registry, suites: str | None = None) -> None:
    for name, config in sorted(self._task_registry.items()):
        place = config.hf_repo or "(its data is not set)"
        print(f"{name}\t{place} [{config.hf_subset}: {', '.join(config.evaluation_splits)}]")


def _dump_tasks(self: Registry) -> list[dict]:
    """Every task with what its file says about it; the original imports all built-in tasks for this."""
    entries = []
    for name, config in sorted(self._task_registry.items()):
        ours = isinstance(config, VideoTaskConfig) and config.benchmark
        about = metadata(config.benchmark) if ours else {}
        module = config.benchmark.module if ours else ""
        entries.append({"module": module, "docstring": about, "tasks": [{"name": name, "version": config.version}]})
    return entries


def _update_task_configs(self: Registry) -> dict:
    try:
        return _ORIGINALS["configs"](self)
    except ValueError as error:
        raise KitError(f"{error}; tasks here: {', '.join(sorted(self._task_registry))}") from None


def _load_task_dataset(task: LightevalTask):
    if not isinstance(task.config, VideoTaskConfig):
        return _ORIGINALS["dataset"](task)
    return load_task_rows(task.config)


def _init_tasks(self: Pipeline, tasks: str) -> None:
    _ORIGINALS["tasks"](self, tasks)
    for name, task in self.tasks_dict.items():
        self.evaluation_tracker.versions_logger.log(name, task.version)


def _aggregate(self: MetricsLogger, *arguments, **options) -> None:
    _ORIGINALS["aggregate"](self, *arguments, **options)
    overall = self.metric_aggregated["all"]
    for name in [name for name in overall if name.endswith(_OF_ONE_TASK)]:
        del overall[name]
