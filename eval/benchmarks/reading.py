"""Rows of a benchmark, whatever shape its data has; rows that cannot be used are left out with one line each.

Published question files are read by the readers that a build uses, so a video has the same id here and in a dataset
made of it: the first hex digits of its content's hash. A frame folder is a video; it is packed once, its pictures
unchanged, into the work folder.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset_builder.errors import KitError, RowError
from dataset_builder.media import MediaError
from dataset_builder.settings import ActivityNetQASource, ShareGPTSource, near
from dataset_builder.sources import find_set, question_id
from dataset_builder.sources.files import Item, read_rows
from dataset_builder.sources.readers import read_activitynet, read_sharegpt
from dataset_builder.sources.rows import clean_row
from dataset_builder.sources.videos import FactsCache, VideoFolder
from eval.benchmarks.base import Benchmark
from eval.benchmarks.locating import KitData, PublishedData, locate, video_folder
from eval.runner import VIDEO_ID_DIGITS, load_rows

_TEXTS = ("question_id", "video_id", "question")  # what a row of a dataset must have


@dataclass
class BenchmarkRows:
    """The usable rows, and why the others are not there.

    Attributes:
        rows: with ``question_id``, ``video_id``, ``question``, ``answers``, ``question_type`` and an undecoded
            ``video`` (``{"bytes", "path"}`` or None); of published files also ``caption`` and the video's ``sha256``.
        left_out: one error for each row that cannot be used.
        place: the file or dataset that was read.
        others: files of the same benchmark beside it that were not.
    """

    rows: Sequence[Mapping[str, Any]]
    left_out: list[RowError] = field(default_factory=list)
    place: str = ""
    others: tuple[str, ...] = ()


def read_benchmark(
    benchmark: Benchmark,
    data: str,
    work: str | Path,
    split: str = "test",
    *,
    whole: bool = False,
    subset: Collection[str] = (),
    limit: int | None = None,
    progress: bool = False,
) -> BenchmarkRows:
    """Read the rows of a benchmark.

    Args:
        benchmark: which one.
        data: a folder, question file or Hub id, see :func:`eval.benchmarks.locating.locate`.
        work: folder for what was found out about videos and for packed frame folders; shared by all benchmarks.
        split: of a dataset of this kit.
        whole: take every row of such a dataset; otherwise only those whose ``source`` is the benchmark's.
        subset: question types and question ids to take; empty takes all.
        limit: take the first so many of these.
        progress: show a bar on stderr while videos are looked up.

    Raises:
        KitError: there is no such data, no row is left, or an entry of ``subset`` fits none.
    """
    where = locate(benchmark, data)
    if isinstance(where, KitData):
        found = _kit_rows(benchmark, where.dataset, split, whole, set(subset), limit)
    else:
        found = _published_rows(benchmark, where, Path(work), set(subset), limit, progress)
    if not len(found.rows):
        first = f"; the first problem: {found.left_out[0]}" if found.left_out else ""
        raise KitError(f"{found.place}: no row is left to evaluate on{first}")
    return found


def _kit_rows(
    benchmark: Benchmark, dataset: str, split: str, whole: bool, subset: set[str], limit: int | None
) -> BenchmarkRows:
    rows = load_rows(dataset, split)
    texts = rows.select_columns([name for name in rows.column_names if name != "video"])
    wanted = None if whole or benchmark.source is None else _set_name(benchmark.source)
    keep, errors, missing, sources = [], [], set(subset), {}
    seen: dict[str, int] = {}
    for index, row in enumerate(texts):
        if limit is not None and len(keep) == limit:
            missing.clear()  # nobody looked whether the rest holds them
            break
        if wanted is not None:
            name = _set_name(row.get("source") or "")
            sources[row.get("source")] = None
            if name != wanted:
                continue
        if subset and not _chosen(row.get("question_type"), row["question_id"], subset, missing):
            continue
        try:
            _check(row, dataset, index + 1, seen)
        except RowError as error:
            errors.append(error)
            continue
        keep.append(index)
    if wanted is not None and sources and not keep and not errors and not subset:
        held = ", ".join(sorted(map(str, sources))[:5])
        raise KitError(
            f"{dataset}: holds no rows of the source '{benchmark.source}' (it holds {held}); to take all its rows for "
            f"{benchmark.name}, name it under `data:` in the settings"
        )
    _refuse_unknown(missing, texts, dataset)
    return BenchmarkRows(rows if len(keep) == len(rows) else rows.select(keep), errors, dataset)


def _set_name(source: str) -> str:
    """One spelling of a well-known set of videos."""
    known = find_set(source)
    return known.name if known else source.casefold()


def _check(row: Mapping[str, Any], file: str, number: int, seen: dict[str, int]) -> None:
    for name in _TEXTS:
        if not isinstance(row[name], str) or not row[name].strip():
            raise RowError(file, number, name, "is missing or empty")
    first = seen.setdefault(row["question_id"], number)
    if first != number:
        raise RowError(file, number, "question_id", f"{row['question_id']!r} stands in row {first} too", "duplicate_id")


def _chosen(kind: str | None, name: str | None, subset: set[str], missing: set[str]) -> bool:
    found = {kind, name} & subset
    missing -= found
    return bool(found)


def _refuse_unknown(missing: set[str], rows: Any, place: str) -> None:
    if not missing:
        return
    entry = min(missing)
    known = {str(row["question_type"]) for row in rows if row.get("question_type") is not None}
    hint = near(entry, known) or (f"; its types are {', '.join(sorted(known)[:10])}" if known else "")
    raise KitError(f"{place}: subset: {entry!r} is neither a question type nor a question id{hint}")


def _published_rows(
    benchmark: Benchmark, where: PublishedData, work: Path, subset: set[str], limit: int | None, progress: bool
) -> BenchmarkRows:
    file, key = str(where.questions), f"data.{benchmark.name}"
    activitynet = where.answers is not None
    if activitynet:
        source = ActivityNetQASource("activitynet_qa", "", file, str(where.answers))
        items = list(read_activitynet(source, key))
    else:
        items = list(read_sharegpt(ShareGPTSource("sharegpt", "", file), key))
    names = (item[1].get("video") for item in items if not isinstance(item, RowError))
    folder = video_folder(where.questions, names, prefix="v_" if activitynet else "")
    captions = {} if activitynet else _captions(file, key)
    facts = FactsCache(work / "facts.sqlite")
    missing = set(subset)
    found = BenchmarkRows([], [], file, tuple(map(str, where.others)))
    try:
        videos = VideoFolder(str(folder), work, facts, ShareGPTSource.fps, key)
        seen: dict[str, int] = {}
        for item in _bar(items, benchmark.name, progress):
            if limit is not None and len(found.rows) == limit:
                missing.clear()
                break
            try:
                row = _published_row(item, file, videos, activitynet, captions, subset, missing)
                if row is None:
                    continue
                _check(row, file, item[0], seen)
            except RowError as error:
                found.left_out.append(error)
                continue
            found.rows.append(row)
    finally:
        facts.close()
    _refuse_unknown(missing, (item[1] for item in items if not isinstance(item, RowError)), file)
    return found


def _published_row(
    item: Item, file: str, videos: VideoFolder, activitynet: bool, captions: dict, subset: set[str], missing: set[str]
) -> dict[str, Any] | None:
    """A row of the benchmark; None if it is none of the subset.

    Raises:
        RowError: it cannot be used.
    """
    if isinstance(item, RowError):
        raise item
    number, raw = item
    row = clean_row(raw, file, number)
    kind, own = row.get("question_type"), row.get("id")
    if subset and own is not None and not _chosen(kind, own, subset, missing):
        return None  # before its video is opened
    caption = captions.get(number)
    if not isinstance(caption, str | None):
        raise RowError(file, number, "caption", f"must be text, not {type(caption).__name__}")
    try:
        video = videos.get(row["video"], youtube=activitynet)
    except MediaError as error:
        raise RowError(file, number, "video", str(error), error.kind) from None
    name = own or question_id(video.sha256, None, None, row["question"])
    if subset and own is None and not _chosen(kind, name, subset, missing):
        return None
    return {
        "question_id": name,
        "video_id": video.sha256[:VIDEO_ID_DIGITS],
        "question": row["question"],
        "answers": row["answers"],
        "question_type": kind,
        "caption": caption,
        "sha256": video.sha256,
        "video": {"bytes": None, "path": video.path},
    }


def _captions(file: str, key: str) -> dict[int, Any]:
    """Captions by row number: a build has no use for them, so its readers leave them out."""
    rows = (item for item in read_rows(file, key) if not isinstance(item, RowError))
    return {number: row["caption"] for number, row in rows if row.get("caption") is not None}


def _bar(items: list[Item], name: str, progress: bool) -> Iterator[Item]:
    if not progress:
        return iter(items)
    from tqdm.auto import tqdm

    return iter(tqdm(items, desc=f"reading {name}", unit="question"))
