"""Rows of a dataset on the Hub or in a folder, streamed; videos in them stay undecoded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dataset_builder.errors import KitError
from dataset_builder.settings import HubSource
from dataset_builder.sources.files import Item, check_columns
from dataset_builder.text import one_line

_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".arrow": "arrow"}


def read_hub(source: HubSource, key: str) -> Iterator[Item]:
    """Rows of the mapped columns, numbered from 1.

    Raises:
        KitError: the dataset cannot be loaded or lacks a mapped column.
    """
    for number, row in stream_dataset(
        source.dataset, source.config, source.split, source.revision, source.columns, key
    ):
        yield number, {name: row[theirs] for name, theirs in source.columns.items() if row.get(theirs) is not None}


def stream_dataset(
    name: str, config: str | None, split: str, revision: str | None, columns: dict[str, str] | None, key: str
) -> Iterator[tuple[int, dict]]:
    """Numbered rows of a dataset, never all in memory.

    Args:
        name: a Hub id, or a folder or file that ``load_dataset`` reads.
        config: its config.
        split: its split.
        revision: of a Hub dataset.
        columns: the wanted columns by the kit's names; None takes all.
        key: of the configuration, for messages.

    Raises:
        KitError: in one line.
    """
    from datasets import Video, load_dataset

    where = f"{key}: {name}"
    path = Path(name)
    local = path.exists() or name.startswith((".", "/", "~"))
    if local and not path.exists():
        raise KitError(f"{where}: there is no such file or folder")
    try:
        if path.is_file():
            if path.suffix.lower() not in _BUILDERS:
                raise KitError(f"{where}: is a file of a kind that is not read ({', '.join(_BUILDERS)} are)")
            more = {"delimiter": "\t"} if path.suffix.lower() == ".tsv" else {}
            found = load_dataset(
                _BUILDERS[path.suffix.lower()], data_files={split: str(path)}, split=split, streaming=True, **more
            )
        else:
            # Streamed, a folder is read as it is now and not from a cache of what it was.
            found = load_dataset(name, config, split=split, revision=None if local else revision, streaming=True)
        if found.features is not None:
            if columns is not None:
                check_columns(columns, list(found.features), where)
                found = found.select_columns(sorted(set(columns.values())))
            for column, feature in list(found.features.items()):
                if isinstance(feature, Video):
                    found = found.cast_column(column, Video(decode=False))
        yield from enumerate(found, start=1)
    except KitError:
        raise
    except (OSError, ValueError, TypeError, KeyError, LookupError, RuntimeError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise KitError(f"{where}: cannot be loaded as a dataset: {one_line(reason)}") from None
    except Exception as error:  # datasets' own errors derive from Exception alone
        if not type(error).__module__.startswith(("datasets", "pyarrow", "huggingface_hub")):
            raise
        raise KitError(f"{where}: cannot be read as a dataset: {one_line(str(error))}") from None
