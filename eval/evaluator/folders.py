"""Where an evaluator lies: fetched from the Hub, written without ever losing what was there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dataset_builder.errors import KitError
from dataset_builder.text import one_line
from eval.evaluator.config import CONFIG, read_config

PACKAGE = "mmaip_v_evaluator"


def fetched(name: str, files: list[str], options: Mapping[str, Any]) -> Path:
    """The folder of an evaluator: itself, or a copy in the Hub's cache.

    Args:
        name: a folder or a Hub id.
        files: patterns of what is needed of it.
        options: of ``snapshot_download``.

    Raises:
        KitError: there is no such folder or repo, or the Hub cannot be reached.
    """
    if os.path.isdir(name):
        return Path(name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise KitError(f"{name}: there is no evaluator's folder here")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=files, **options))
    except Exception as error:  # one of many kinds, most with a page of text; the first line says which
        raise KitError(f"{name}: cannot be downloaded: {first_line(error)}") from error


def refuse_other_content(folder: Path) -> None:
    """Nothing is written over what is no evaluator. Hidden files, such as a clone's ``.git``, do not count.

    Raises:
        KitError: the folder is used for something else.
    """
    if (folder / CONFIG).exists():
        read_config(folder)
    elif folder.exists() and not (folder / PACKAGE).is_dir():  # which is there if a saving was stopped
        if folder.is_dir() and all(path.name.startswith(".") for path in folder.iterdir()):
            return
        raise KitError(f"{folder}: holds something else; name a new folder or an evaluator's")


def replace(partial: Path, folder: Path, optional: Iterable[str]) -> None:
    """Move what was written into its folder, and what was there before out of it.

    Args:
        partial: the new content; holds the old one afterwards.
        folder: gets it. ``config.json`` comes last, for without it there is no evaluator.
        optional: names that leave the folder even if there is nothing new for them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    old = partial / ".old"
    old.mkdir()
    written = sorted(path.name for path in partial.iterdir() if path != old)
    for name in [CONFIG, *sorted({*optional, *written} - {CONFIG})]:
        if (folder / name).exists() or (folder / name).is_symlink():
            os.replace(folder / name, old / name)
        if name in written and name != CONFIG:
            os.replace(partial / name, folder / name)
    os.replace(partial / CONFIG, folder / CONFIG)


def drop(partial: Path) -> None:
    """Delete a folder that may not be there."""
    shutil.rmtree(partial, ignore_errors=True)


def first_line(error: Exception) -> str:
    """What an error of any library says, in one line."""
    return one_line((str(error).strip().splitlines() or [type(error).__name__])[0])
