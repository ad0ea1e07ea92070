"""From sources to the question table: rows stream by, bad ones are listed, every video gets one split."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_builder.errors import KitError, RowError
from dataset_builder.media import MediaError
from dataset_builder.settings import Source, SplitConfig
from dataset_builder.sources.files import Item
from dataset_builder.sources.hub import read_hub
from dataset_builder.sources.licenses import terms_of
from dataset_builder.sources.preferences import read_preferences
from dataset_builder.sources.readers import read_activitynet, read_folder, read_sharegpt, read_video_chatgpt
from dataset_builder.sources.rows import clean_row, question_id, split_of
from dataset_builder.sources.scratch import Scratch
from dataset_builder.sources.videos import FactsCache, Video, VideoFolder
from dataset_builder.stages import canonical_json
from dataset_builder.table import QUESTION_SCHEMA, sort_parquet, write_questions
from dataset_builder.text import one_line

IMPORTED_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("model_chosen", pa.string()),
        ("model_rejected", pa.string()),
        ("score_chosen", pa.float64()),
        ("score_rejected", pa.float64()),
    ]
)
_PAIR_ORDER = pa.schema([*IMPORTED_SCHEMA, ("sha256", pa.string()), ("number", pa.int64())])
_ROWS = 4096
# Fields in which a repeated row may differ: one that names no split says nothing against one that does, and copies of
# one file are one video.
_PLACE = frozenset(("split", "path", "source_id", "embed"))


@dataclass
class SourceReport:
    """What reading the sources gave.

    Attributes:
        questions: usable ones.
        videos: that they are about, told apart by their bytes.
        rejected: rows left out, by kind.
        splits: questions in each split.
        first_error: of the first row left out.
    """

    questions: int = 0
    videos: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    first_error: RowError | None = None


def read_sources(
    sources: Sequence[Source],
    split: SplitConfig,
    work: Path,
    block_size: int,
    limit: int | None = None,
    progress: bool = False,
    cache: Any = None,
) -> SourceReport:
    """Read, check, hash and probe sources into a work folder. Rows are not kept in memory.

    Writes ``questions.arrow`` (left as it is when no question is usable), ``media.json`` (sha256 → path),
    ``rejected.jsonl`` (one row left out a line) and, of preference rows, ``imported.parquet`` (one pair a row, in the
    table's order). Facts about videos are kept in ``sources/facts.sqlite`` and not found out again.

    Args:
        sources: of the configuration: questions, or preference rows.
        split: shares for the videos of which no row names a split.
        work: work folder.
        block_size: questions per block of the table.
        limit: stop after the first so many usable questions, in the order of the sources and their rows.
        progress: show a bar over the rows on stderr.
        cache: of calls to endpoints, when a model writes questions.

    Raises:
        KitError: a source is missing, cannot be read or holds nothing, or its videos may not be redistributed.
    """
    work = Path(work)
    facts = FactsCache(work / "sources" / "facts.sqlite")
    try:
        with Scratch(work / ".sources.sqlite.tmp") as scratch:
            return _Collector(sources, split, work, scratch, facts, cache).run(block_size, limit, progress)
    finally:
        facts.close()


class _Collector:
    def __init__(self, sources: Sequence[Source], split: SplitConfig, work: Path, scratch: Scratch, facts, cache):
        self.sources, self.split, self.work, self.scratch, self.facts = sources, split, work, scratch, facts
        self.cache, self.report, self.rejected = cache, SourceReport(), Counter()
        self.pairs: list[dict] = []
        self.pair_count, self.pair_writer = 0, None

    def run(self, block_size: int, limit: int | None, progress: bool) -> SourceReport:
        work, imports = self.work, any(source.kind == "preferences" for source in self.sources)
        loose, pairs = work / ".sources-loose.tmp", work / ".sources-pairs.tmp"
        bad = work / ".rejected.jsonl.tmp"
        try:
            if imports:
                self.pair_writer = pq.ParquetWriter(pairs, _PAIR_ORDER)
            with open(bad, "w", encoding="utf-8") as self.bad, pq.ParquetWriter(loose, QUESTION_SCHEMA) as writer:
                rows: list[dict] = []
                for row in self._bar(self._questions(limit), progress):
                    rows.append(row)
                    if len(rows) == _ROWS:
                        writer.write_table(pa.Table.from_pylist(rows, QUESTION_SCHEMA))
                        rows = []
                writer.write_table(pa.Table.from_pylist(rows, QUESTION_SCHEMA))
            os.replace(bad, work / "rejected.jsonl")
            splits: Counter = Counter()
            count = write_questions(self._with_splits(loose, splits), work / "questions.arrow", block_size)
            if imports:
                self._flush_pairs()
                self.pair_writer.close()
                self._write_imported(pairs)
            self.report.videos = self._write_media()
        except OSError as error:
            raise KitError(f"{work}: cannot be written to ({error.strerror or error})") from None
        finally:
            for file in (loose, pairs, bad):
                file.unlink(missing_ok=True)
        self.report.questions, self.report.rejected = count, dict(sorted(self.rejected.items()))
        self.report.splits = {name: splits[name] for name in ("train", "validation", "test") if splits[name]}
        return self.report

    @staticmethod
    def _bar(rows: Iterator[dict], progress: bool) -> Iterator[dict]:
        if not progress:
            return rows
        from tqdm.auto import tqdm

        return iter(tqdm(rows, desc="questions", unit="question"))

    def _questions(self, limit: int | None) -> Iterator[dict]:
        """Usable questions, in order, without their splits."""
        count = 0
        for index, source in enumerate(self.sources):
            key = f"sources[{index}]"
            try:
                terms_of(source.source, source.license, source.redistribute)
            except KitError as error:
                raise KitError(f"{key}: {error}") from None
            videos = self._videos_of(source, key)
            pairs = source.kind == "preferences"
            for item in self._items(source, key, videos):
                try:
                    if isinstance(item, RowError):
                        raise item
                    row = self._row(source, *item, videos, pairs)
                except RowError as error:
                    self._reject(error)
                    continue
                if row is None:
                    continue
                yield row
                count += 1
                if count == limit:
                    return

    def _videos_of(self, source: Source, key: str) -> VideoFolder:
        folder, name = source.videos, f"{key}.videos"
        if folder is None:  # a dataset folder may hold its videos as files
            place = source.dataset if source.kind == "hub" else source.rows
            folder = place if Path(place).is_dir() else None
        return VideoFolder(folder, self.work, self.facts, source.fps, name)

    def _items(self, source: Source, key: str, videos: VideoFolder) -> Iterator[Item]:
        if source.kind == "generated":
            # Only here: it needs the models' libraries.
            from dataset_builder.sources.generated import read_generated

            return read_generated(source, key, videos, self.work, self.cache)
        return {
            "folder": read_folder,
            "hub": read_hub,
            "sharegpt": read_sharegpt,
            "activitynet_qa": read_activitynet,
            "video_chatgpt": read_video_chatgpt,
            "preferences": read_preferences,
        }[source.kind](source, key)

    def _row(self, source: Source, number: int, raw: dict, videos: VideoFolder, pairs: bool) -> dict | None:
        """A row of the question table; None when only a pair was added to an earlier question."""
        file = file_of(source)
        clean = clean_row(raw, file, number, pairs)
        try:
            video = videos.get(clean["video"], youtube=source.kind in ("activitynet_qa", "video_chatgpt"))
        except MediaError as error:
            raise RowError(file, number, "video", str(error), error.kind) from None
        name = clean.get("source", source.source)
        try:
            terms = terms_of(name, clean.get("license", source.license), source.redistribute)
        except KitError as error:
            raise RowError(file, number, "source", str(error), "not_redistributable") from None
        row = _table_row(clean, video, name, terms)
        named = self.scratch.split(video.sha256)
        if "split" in clean and named is not None and named[0] != clean["split"]:
            reason = (
                f"is '{clean['split']}', but row {named[2]}{_elsewhere(named[1], file)} puts the same video into "
                f"'{named[0]}'; a video belongs to one split"
            )
            raise RowError(file, number, "split", reason, "split_conflict")
        new = self._claim_pair(row, clean, file, number) if pairs else self._claim(row, file, number)
        if "split" in clean:
            self.scratch.name_split(video.sha256, clean["split"], file, number)
        self.scratch.use_video(video.sha256, video.path, terms.embed)
        return row if new else None

    def _claim(self, row: dict, file: str, number: int) -> bool:
        """Take the row's id.

        Raises:
            RowError: an earlier row has it.
        """
        content = {name: value for name, value in row.items() if name not in _PLACE}
        earlier = self.scratch.claim_id(row["question_id"], file, number, content)
        if earlier is not None:
            raise _repetition(row["question_id"], content, file, number, earlier)
        return True

    def _claim_pair(self, row: dict, clean: dict, file: str, number: int) -> bool:
        """Add the row's pair to its question; whether the question is new. Its first row's id and answers stay."""
        earlier_id = self.scratch.id_of(row["sha256"], row["question"])
        new = earlier_id is None
        if new:
            content = {name: row[name] for name in ("sha256", "video_id", "question")}
            earlier = self.scratch.claim_id(row["question_id"], file, number, content)
            if earlier is not None:
                raise _repetition(row["question_id"], content, file, number, earlier)
            self.scratch.asked(row["sha256"], row["question"], row["question_id"])
        name = earlier_id or row["question_id"]
        there = self.scratch.claim_pair(name, clean["chosen"], clean["rejected"], file, number)
        if there is not None:
            reason = f"repeats row {there[1]}{_elsewhere(there[0], file)}; left out"
            raise RowError(file, number, None, reason, "duplicate_row")
        pair = {column: clean.get(column) for column in IMPORTED_SCHEMA.names}
        self.pairs.append({**pair, "question_id": name, "sha256": row["sha256"], "number": self.pair_count})
        self.pair_count += 1
        if len(self.pairs) == _ROWS:
            self._flush_pairs()
        return new

    def _flush_pairs(self) -> None:
        self.pair_writer.write_table(pa.Table.from_pylist(self.pairs, _PAIR_ORDER))
        self.pairs = []

    def _reject(self, error: RowError) -> None:
        self.report.first_error = self.report.first_error or error
        self.rejected[error.kind] += 1
        entry = {name: getattr(error, name) for name in ("file", "row", "field", "kind", "reason")}
        # Names that are not UTF-8 must not break the list.
        self.bad.write(canonical_json(entry).encode("utf-8", "backslashreplace").decode() + "\n")

    def _with_splits(self, loose: Path, splits: Counter) -> Iterator[dict]:
        """The rows again. Only now: a row at the end of the file may have named the split of a video before it."""
        for batch in pq.ParquetFile(loose).iter_batches(_ROWS):
            for row in batch.to_pylist():
                named = self.scratch.split(row["sha256"])
                row["split"] = named[0] if named else split_of(row["sha256"], self.split)
                row["embed"] = self.scratch.embed(row["sha256"])
                splits[row["split"]] += 1
                yield row

    def _write_imported(self, pairs: Path) -> None:
        """The pairs in the order of the question table."""
        ordered, new = self.work / ".sources-ordered.tmp", self.work / ".imported.parquet.tmp"
        try:
            sort_parquet(pairs, ordered, ("sha256", "question_id", "number"))
            with pq.ParquetWriter(new, IMPORTED_SCHEMA) as writer:
                for batch in pq.ParquetFile(ordered).iter_batches(_ROWS):
                    table = pa.Table.from_batches([batch]).select(IMPORTED_SCHEMA.names)
                    writer.write_table(table.cast(IMPORTED_SCHEMA))
            os.replace(new, self.work / "imported.parquet")
        finally:
            for file in (ordered, new):
                file.unlink(missing_ok=True)

    def _write_media(self) -> int:
        """``media.json``, one video after the other; returns their number."""
        new, count = self.work / ".media.json.tmp", 0
        with open(new, "w", encoding="utf-8") as stream:
            stream.write("{")
            for sha256, path in self.scratch.videos():
                stream.write(f"{',' if count else ''}\n  {json.dumps(sha256)}: {json.dumps(path)}")
                count += 1
            stream.write("\n}\n")
        os.replace(new, self.work / "media.json")
        return count


def file_of(source: Source) -> str:
    """The file or dataset that a source's rows are in, as the person wrote it."""
    if source.kind == "generated":
        return source.captions or source.videos
    return getattr(source, {"hub": "dataset", "preferences": "rows"}.get(source.kind, "questions"))


def _table_row(clean: dict, video: Video, source: str, terms) -> dict[str, Any]:
    return {
        "question_id": clean.get("id") or question_id(video.sha256, None, None, clean["question"]),
        "video_id": video.sha256[:16],
        "source": source,
        "source_id": video.name,
        "start": None,
        "end": None,
        "license": terms.license,
        "sha256": video.sha256,
        "phash": video.phash,
        "duration": video.duration,
        "question": clean["question"],
        "answer": clean["answers"][0] if clean["answers"] else None,
        "answers": clean["answers"],
        "question_type": clean.get("question_type"),
        "origin": clean["origin"],
        "split": None,
        "path": video.path,
        "embed": terms.embed,
    }


def _elsewhere(file: str, here: str) -> str:
    return "" if file == here else f" of {one_line(file)}"


def _repetition(name: str, new: dict, file: str, number: int, earlier: tuple[str, int, dict]) -> RowError:
    """Why a row whose id was there before is left out."""
    first_file, first, old = earlier
    place = f"row {first}{_elsewhere(first_file, file)}"
    differs = [column for column in new if new[column] != old[column]]
    if not differs:
        return RowError(file, number, "id", f"repeats {place}; left out", "duplicate_row")
    # A person wrote "video" and "answer"; the fields that follow from these are not worth naming.
    words = {"video_id": "video", "answers": "answer"}
    follow = ("sha256", "phash", "duration")
    other = " and ".join(list(dict.fromkeys(words.get(each, each) for each in differs if each not in follow))[:3])
    return RowError(
        file, number, "id", f"'{one_line(name)}' already stands in {place} with another {other}", "duplicate_id"
    )
