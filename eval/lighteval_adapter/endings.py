"""How a LightEval run ends: an exit code that says what came out, one line for what is wrong, results on a Hub."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import typer
from lighteval.logging.evaluation_tracker import EvaluationTracker
from lighteval.pipeline import Pipeline

from dataset_builder.errors import EXIT_ROWS_LEFT_OUT, EXIT_UNJUDGED, KitError
from dataset_builder.text import one_line
from eval.lighteval_adapter.state import RUN
from eval.settings import load_settings

_ORIGINALS: dict[str, Callable] = {}
_OFFICIAL_HUB = "https://huggingface.co"
_LONGEST_NAME = 70  # of the 96 characters that a repo's name may have


def patch_endings() -> None:
    """Replace what the module's docstring speaks of; calling it again changes nothing."""
    if not _ORIGINALS:
        _ORIGINALS.update(save=Pipeline.save_and_push_results, push=EvaluationTracker.push_to_hub)
    Pipeline.save_and_push_results = _save_and_push_results
    EvaluationTracker.push_to_hub = _push_to_hub
    # The bare command is typer's, which shows every exception as a page; `python -m eval` catches them itself.
    if sys.excepthook is not sys.__excepthook__ and sys.excepthook is not _hook:
        _ORIGINALS["hook"], sys.excepthook = sys.excepthook, _hook


def _hook(kind, error, trace) -> None:
    if isinstance(error, KitError):
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code)
    _ORIGINALS["hook"](kind, error, trace)


def _save_and_push_results(self: Pipeline) -> None:
    """The last step of every command; what is wrong with the results is said when they are saved."""
    _ORIGINALS["save"](self)
    if not self.is_main_process():
        return
    limit, code = load_settings().max_unjudged, 0
    for name, task in self.tasks_dict.items():
        missing, total = RUN.verdicts.get(name, (0, 0))
        if RUN.left_out.get(task.name):
            code = code or EXIT_ROWS_LEFT_OUT
        if missing > limit * total:
            print(
                f"error: {task.name}: {missing} of {total} answers have no verdict ({missing / total:.1%}, allowed are "
                f"{limit:.1%}); the results are saved, with the reasons in their details",
                file=sys.stderr,
            )
            code = EXIT_UNJUDGED
    if code:
        raise typer.Exit(code)


def _push_to_hub(self: EvaluationTracker, **arguments) -> None:
    """Push under the checkpoint's own name, not the whole path to it."""
    from huggingface_hub import RepoCard, constants

    logger, validate = self.general_config_logger, RepoCard.validate
    name = logger.model_name
    logger.model_name = repo_part(name)
    if constants.ENDPOINT != _OFFICIAL_HUB:
        RepoCard.validate = lambda card, repo_type=None: None  # it would ask huggingface.co all the same
    try:
        _ORIGINALS["push"](self, **arguments)
    except Exception as error:  # of many kinds: httpx's, huggingface_hub's, datasets', fsspec's
        reason = one_line((str(error).strip().splitlines() or [type(error).__name__])[0])
        raise KitError(
            f"the results are saved in {self.output_dir}, but could not be pushed to {self.hub_results_org}: {reason}"
        ) from error
    finally:
        logger.model_name, RepoCard.validate = name, validate


def repo_part(model_name: str) -> str:
    """A model's name as part of a repo's: a folder's own name, or a Hub id; other characters are ``_``."""
    name = Path(model_name).resolve().name if Path(model_name).is_dir() else model_name.replace("/", "__")
    name = re.sub(r"-{2,}", "-", re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9._-]", "_", name)))
    return name[:_LONGEST_NAME].strip("-.") or "model"
