"""Reading a config of a dataset folder or Hub dataset back, for training and evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dataset_builder.errors import KitError


def load_config(dataset: str | Path, config: str, split: str, columns: Iterable[str]):
    """Load one split of one config, its videos left undecoded.

    Args:
        dataset: a dataset folder or a Hub id.
        config: such as ``preferences``.
        split: such as ``train``.
        columns: what the rows must have; one of them is ``video``.

    Returns:
        A ``datasets.Dataset``.

    Raises:
        KitError: if there is no such dataset, config or split, or a column is missing.
    """
    import datasets

    # A Hub id is NAMESPACE/NAME. Anything else that is no folder must not reach load_dataset, which would answer a bare
    # name from its cache of a folder that is gone.
    name, folder = str(dataset), Path(dataset)
    if not folder.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise KitError(
            f"{dataset}: no such dataset folder; build one with `python -m dataset_builder build CONFIG.yaml`"
        )
    # Given a folder, load_dataset keys its cache on the README alone and may answer with rows of an earlier build;
    # given files, it looks at their times.
    files = sorted(str(path) for path in folder.glob(f"{config}/{split}-*.parquet"))
    # Reading files of one's own as "parquet" would be reported to a download counter on the network.
    counted, datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS, False
    try:
        if files:
            rows = datasets.load_dataset("parquet", data_files={split: files}, split=split)
        else:
            rows = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # datasets raises many kinds here; the first line says which part is missing
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise KitError(f"{dataset}: cannot load split '{split}' of config '{config}': {reason}") from error
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counted
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise KitError(f"{dataset}: the '{config}' config has no column '{missing[0]}'")
    return rows.cast_column("video", datasets.Video(decode=False))
