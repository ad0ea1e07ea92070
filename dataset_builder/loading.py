"""Reading a dataset folder or Hub dataset back: loaded for training and evaluation, streamed for everything else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_builder.errors import KitError

VIDEO_BATCH = 8  # rows with videos in memory at a time


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

    # What is neither folder nor Hub id must not reach load_dataset, which would answer a bare name from its cache of a
    # folder that is gone.
    name, folder = str(dataset), Path(dataset)
    _check_name(dataset)
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


def dataset_folder(dataset: str | Path, *parts: str) -> Path:
    """The folder of a dataset: itself, or a copy of a Hub dataset in the Hub's cache.

    Args:
        dataset: a dataset folder or a Hub id.
        parts: what is needed of it, such as ``preferences/train-*.parquet``; all of it when left out. The JSON files
            and the card always come along.

    Raises:
        KitError: there is no such dataset, or the Hub cannot be reached.
    """
    _check_name(dataset)
    folder = Path(dataset)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "README.md", *(parts or ["*/*.parquet"])]
    try:
        return Path(snapshot_download(str(dataset), repo_type="dataset", allow_patterns=patterns))
    except Exception as error:  # one of many kinds, most with a page of text; the first line says which
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise KitError(f"{dataset}: cannot be downloaded: {reason}") from error


def split_files(folder: Path, config: str) -> dict[str, list[Path]]:
    """The Parquet files of a config, by split, in the order of their rows.

    Raises:
        KitError: the config has none.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted((folder / config).glob("*-*.parquet")):
        found.setdefault(path.name.split("-")[0], []).append(path)
    if not found:
        raise KitError(f"{folder}: has no config '{config}'; it is not a whole dataset of this kit")
    return found


def stream_batches(files: Iterable[Path], columns: list[str], rows: int = 1024) -> Iterator[pa.RecordBatch]:
    """Rows of Parquet files, batch by batch.

    Args:
        files: Parquet files.
        columns: columns to read, in this order; ``video.path`` reads that part of a struct alone.
        rows: most rows of one batch.

    Raises:
        KitError: a file is damaged, or lacks a column.
    """
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                known = set(file.schema_arrow.names)
                missing = [name for name in columns if name.split(".")[0] not in known]
                if missing:
                    raise KitError(f"{path}: has no column '{missing[0]}'")
                for batch in file.iter_batches(rows, columns=columns):
                    yield batch.select([name.split(".")[0] for name in columns])
        except (OSError, pa.ArrowInvalid) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise KitError(f"{path}: is damaged or cannot be read ({reason})") from None


def read_media(media: str | Path | dict[str, str] | None) -> dict[str, str]:
    """A build's ``media.json``: paths of videos on this machine, by sha256.

    Args:
        media: the file, its content, or None for no videos at all.

    Raises:
        KitError: there is no such file, or it is something else.
    """
    if media is None:
        return {}
    content = media
    if not isinstance(media, dict):
        try:
            content = json.loads(Path(media).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise KitError(f"{media}: is not a media.json of a build ({error})") from None
    if not (isinstance(content, dict) and all(isinstance(path, (str, Path)) for path in content.values())):
        raise KitError(f"{media}: is not a media.json of a build: expected an object that maps sha256 to a path")
    return {digest: str(path) for digest, path in content.items()}


def _check_name(dataset: str | Path) -> None:
    """Refuse what is neither a folder nor a Hub id (NAMESPACE/NAME)."""
    name = str(dataset)
    if not Path(dataset).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise KitError(
            f"{dataset}: no such dataset folder; build one with `python -m dataset_builder build CONFIG.yaml`"
        )
