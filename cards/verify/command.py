"""``python -m cards verify``: fetch a released repo, say what it is, check its card."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import yaml

from cards.verify.checks import Check, as_text, exit_code
from dataset_builder.errors import KitError

KINDS = ("dataset", "model", "evaluator")
# Of a model only what the figures are computed from: no weights.
_MODEL_FILES = ("README.md", "*.json", "*.yaml", "results/**", ".eval_results/*")


def add_verify(verbs: argparse._SubParsersAction) -> None:
    """Add the verb to the room's command line."""
    verify = verbs.add_parser("verify", help="compute every number of a released card again from the released rows")
    verify.add_argument("repo", metavar="NS/NAME|FOLDER", help="a repo of the Hub, or a folder that holds one")
    verify.add_argument("--revision", help="branch, tag or commit (default: main)")
    verify.add_argument("--kind", choices=KINDS, help="of the repo; found out by default")
    verify.add_argument("--dataset", metavar="NS/NAME|FOLDER", help="for a model: also check what it says of its data")


def verify(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Check a repo's card.

    Returns:
        0 when every number that can be computed again is right, 5 when one differs, 2 when something could not be
        checked that should be.

    Raises:
        KitError: there is no such repo or folder, or no card in it.
    """
    folder = fetch(arguments.repo, arguments.revision, arguments.kind)
    kind = arguments.kind or kind_of(folder)
    checks = check_folder(folder, kind, arguments.dataset)
    say(as_text(checks, f"{kind} {arguments.repo}" + (f" at {arguments.revision}" if arguments.revision else "")))
    return exit_code(checks)


def check_folder(folder: Path, kind: str, dataset: str | None = None) -> list[Check]:
    """Check the card in a folder.

    Args:
        folder: a copy of the repo.
        kind: ``dataset``, ``model`` or ``evaluator``.
        dataset: repo id or folder of the dataset that a model was trained on.

    Raises:
        KitError: there is no card, or a file beside it is missing or not as the kit writes it.
    """
    from cards.verify.dataset import verify_dataset
    from cards.verify.evaluator import verify_evaluator
    from cards.verify.model import verify_model

    data = fetch(dataset, None, "dataset") if dataset else None
    try:
        if kind == "dataset":
            return verify_dataset(folder)
        return verify_evaluator(folder) if kind == "evaluator" else verify_model(folder, data)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, yaml.YAMLError) as error:
        # whatever a stranger's copy holds instead of what was released
        said = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        raise KitError(f"{folder}: its files are not as the kit writes them ({said}); download the repo anew") from None


def fetch(repo: str, revision: str | None, kind: str | None) -> Path:
    """A copy of a repo on this machine: the folder itself, or a snapshot of the Hub.

    Raises:
        KitError: there is neither.
    """
    folder = Path(repo)
    if folder.is_dir():
        if revision:
            raise KitError(f"{repo}: is a folder, which has no revision '{revision}'; leave --revision out")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    if repo.count("/") != 1 or repo.startswith(("/", ".")):
        raise KitError(f"{repo}: there is no such folder, and NAMESPACE/NAME is what a repo of the Hub is called")
    types = [("dataset", None), ("model", _MODEL_FILES)]
    if kind is not None:
        types = [entry for entry in types if (entry[0] == "dataset") == (kind == "dataset")]
    for place, (repo_type, patterns) in enumerate(types):
        try:
            return Path(
                snapshot_download(
                    repo, repo_type=repo_type, revision=revision, allow_patterns=list(patterns) if patterns else None
                )
            )
        except RevisionNotFoundError:
            raise KitError(f"{repo}: has no revision '{revision}'") from None
        except (RepositoryNotFoundError, HFValidationError) as error:
            if place + 1 == len(types):
                raise KitError(
                    f"{repo}: there is no such repo on the Hub, or the token in use may not read it "
                    f"({type(error).__name__}); python -m cards doctor says what the token may do"
                ) from None
        except Exception as error:  # httpx and the Hub's client raise many kinds: no network, gated, out of disk
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise KitError(f"{repo}: cannot be downloaded: {first}") from None
    raise AssertionError("one of the two was tried")


def kind_of(folder: Path) -> str:
    """What a repo holds.

    Raises:
        KitError: none of the three.
    """
    if any(folder.glob("responses/*.parquet")):
        return "dataset"
    config = folder / "config.json"
    try:
        content = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except ValueError:
        content = {}
    if str(content.get("format", "")).startswith("mmaip-v-evaluator"):
        return "evaluator"
    if content or (folder / "arms.json").is_file() or (folder / "adapter_config.json").is_file():
        return "model"
    raise KitError(f"{folder}: is neither a dataset, nor a model, nor an evaluator of this kit; --kind says which")
