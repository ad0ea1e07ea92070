"""The thin final writer: finished stages to the folder that ``load_dataset`` reads.

This module is what would have been the dataset's loading script before ``datasets`` stopped running those from the
Hub: a :class:`datasets.GeneratorBasedBuilder` for the configs with videos and a :class:`datasets.ArrowBasedBuilder` for
the large plain ones. They read the question table and the assembled rows of the work folder (``questions.arrow``,
``assembled/{responses,pairs}.parquet``) as a stream and have ``datasets`` write sharded Parquet. All files are made in
a temporary folder beside the target, which is renamed when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from dataset_builder.assemble import PAIRS, RESPONSES, beside, read_parquet
from dataset_builder.errors import KitError
from dataset_builder.schema import CONFIG_SPLITS, DEFAULT_CONFIG, FEATURES, assistant_message, user_message
from dataset_builder.stages import fingerprint, write_atomic, write_json
from dataset_builder.table import QuestionTable

ROW_GROUP = 1024  # rows
# Videos make rows large. Without them, groups as small would be hundreds of thousands, and Parquet keeps a record of
# each in memory until the file is closed.
ROW_GROUP_OF_VIDEOS = 8
DESCRIPTIONS = {
    "preferences": "Preference pairs: the best against the worst answer of the zoo, with the video.",
    "benchmark": "Held-out questions with their reference answers, with the video.",
    "responses": "Every answer of every zoo member with every judge score.",
    "questions": "Every question with where it came from.",
}


@dataclass
class MmaipVConfig(datasets.BuilderConfig):
    """One of the four configs.

    Attributes:
        work: work folder of a finished build.
        embed: put the bytes of the videos into the rows where their licence allows it; False leaves ``video`` null.
    """

    work: str = ""
    embed: bool = True

    @property
    def table(self) -> QuestionTable:
        """The build's questions."""
        return QuestionTable(Path(self.work) / "questions.arrow")


def _configs(*names: str) -> list[MmaipVConfig]:
    return [MmaipVConfig(name=n, version=datasets.Version("1.0.0"), description=DESCRIPTIONS[n]) for n in names]


class _Info:
    """What both builders have in common."""

    BUILDER_CONFIG_CLASS = MmaipVConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=FEATURES[self.config.name])

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        present = self._present()
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"split": split})
            for split in CONFIG_SPLITS[self.config.name]
            if split in present
        ]


class MmaipV(_Info, datasets.GeneratorBasedBuilder):
    """The configs with videos, ``preferences`` and ``benchmark``: row by row, sorted by video."""

    BUILDER_CONFIGS = _configs("preferences", "benchmark")
    DEFAULT_CONFIG_NAME = DEFAULT_CONFIG

    def _present(self) -> set[str]:
        return {row["split"] for row, _ in self._rows()}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        last: tuple[str, dict | None] = ("", None)  # rows are sorted by video: read each clip once
        position = 0
        for question, row in self._rows():
            if question["split"] != split:
                continue
            if last[0] != question["sha256"]:
                last = (question["sha256"], self._video(question))
            yield position, {**row, "video": last[1]}
            position += 1

    def _rows(self) -> Iterator[tuple[dict, dict]]:
        """(question, row of this config without its video)."""
        name = self.config.name
        columns = [key for key in FEATURES[name] if key != "video"]
        if name == "benchmark":
            for question in self.config.table:
                if question["split"] in CONFIG_SPLITS[name] and question["answers"]:
                    yield question, {key: question[key] for key in columns}
            return
        for question, pairs in beside(self.config.table, read_parquet(Path(self.config.work) / PAIRS)):
            for pair in pairs:
                full = {
                    **question,
                    **pair,
                    "prompt": [user_message(question["question"])],
                    "chosen": [assistant_message(pair["chosen"])],
                    "rejected": [assistant_message(pair["rejected"])],
                }
                yield question, {key: full[key] for key in columns}

    def _video(self, question: dict) -> dict | None:
        """The clip as the ``Video`` feature stores it, or None where the licence does not allow copies."""
        if not (self.config.embed and question["embed"]):
            return None
        path = Path(question["path"])
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != question["sha256"]:
            raise KitError(f"{path}: the file changed while the build ran; run the same command again")
        return {"bytes": data, "path": f"{question['video_id']}{path.suffix.lower()}"}


class MmaipVTables(_Info, datasets.ArrowBasedBuilder):
    """The configs without videos, ``responses`` and ``questions``: Arrow batches, which never become Python rows."""

    BUILDER_CONFIGS = _configs("responses", "questions")

    def _present(self) -> set[str]:
        table = self.config.table
        columns = (table.batch(index).column("split") for index in range(table.block_count))
        return {split for column in columns for split in column.unique().to_pylist()}

    def _generate_tables(self, split: str) -> Iterator[tuple[int, pa.Table]]:
        # Row groups of the same size whatever the block size was.
        schema, size = self.info.features.arrow_schema, ROW_GROUP
        left, position = schema.empty_table(), 0
        for batch, splits in self._batches():
            rows = batch.filter(pc.equal(splits, split))
            left = pa.concat_tables([left, pa.Table.from_batches([rows]).select(schema.names).cast(schema)])
            while left.num_rows >= size:
                yield position, left.slice(0, size).combine_chunks()
                left, position = left.slice(size), position + 1
        if left.num_rows:
            yield position, left.combine_chunks()

    def _batches(self) -> Iterator[tuple[pa.RecordBatch, pa.Array]]:
        """(rows, the split of each row)."""
        table = self.config.table
        if self.config.name == "questions":
            for index in range(table.block_count):
                batch = table.batch(index)
                yield batch, batch.column("split")
            return
        questions = _splits(table)
        key, split = next(questions)
        for batch in pq.ParquetFile(Path(self.config.work) / RESPONSES).iter_batches(ROW_GROUP):
            splits = []
            for question_id in batch.column("question_id").to_pylist():  # in the table's order
                while key != question_id:
                    key, split = next(questions)
                splits.append(split)
            yield batch, pa.array(splits, pa.string())


def _splits(table: QuestionTable) -> Iterator[tuple[str, str]]:
    for index in range(table.block_count):
        batch = table.batch(index)
        yield from zip(batch.column("question_id").to_pylist(), batch.column("split").to_pylist())


def write_dataset(
    work: Path, output: Path, embed: bool, extra: dict[str, dict], max_shard_size: str = "500MB"
) -> dict[str, dict[str, int]]:
    """Write the dataset folder from a finished work folder and put it in the place of an older one.

    Args:
        work: holds ``questions.arrow`` and ``assembled/``.
        output: the dataset folder; an existing one is replaced in one rename (callers check that it may be).
        embed: whether rows carry the videos' bytes.
        extra: more JSON files for the folder, by name; ``provenance.json`` gets the hashes of the Parquet files.
        max_shard_size: of one Parquet file, as ``datasets`` understands it.

    Returns:
        Rows by config and split.
    """
    new = output.with_name(f".{output.name}.new")
    scratch = work / "writer-cache"
    for folder in (new, scratch):
        shutil.rmtree(folder, ignore_errors=True)
    new.mkdir(parents=True)
    was_disabled = not datasets.utils.is_progress_bar_enabled()
    datasets.utils.disable_progress_bars()
    infos: dict[str, datasets.DatasetInfo] = {}
    try:
        for name in FEATURES:
            info = _write_config(name, work, new / name, scratch / name, embed, max_shard_size)
            if info is not None:
                infos[name] = info
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if not was_disabled:
            datasets.utils.enable_progress_bars()
    files = {
        str(path.relative_to(new)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(new.rglob("*.parquet"))
    }
    contents = {name: content_key(files, name) for name in infos}
    write_atomic(new / "README.md", dataset_readme(infos, contents))
    for name, content in extra.items():
        write_json(new / name, {**content, "files": files} if name == "provenance.json" else content)
    _put_in_place(new, output)
    return {name: {split: info.splits[split].num_examples for split in info.splits} for name, info in infos.items()}


def _write_config(
    name: str, work: Path, target: Path, scratch: Path, embed: bool, max_shard_size: str
) -> datasets.DatasetInfo | None:
    """Write one config's Parquet files under their final names; None when it has no rows at all."""
    with_videos = "video" in FEATURES[name]
    size = ROW_GROUP_OF_VIDEOS if with_videos and embed and _any_video(work) else ROW_GROUP
    builder = (MmaipV if with_videos else MmaipVTables)(
        config_name=name,
        cache_dir=str(scratch / "cache"),
        writer_batch_size=size,
        work=str(work),
        embed=embed,
    )
    if not builder._split_generators(None):
        return None
    made = scratch / "made"
    try:
        builder.download_and_prepare(
            output_dir=str(made), file_format="parquet", max_shard_size=max_shard_size, verification_mode="no_checks"
        )
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, KitError):
            raise error.__cause__ from None
        raise
    target.mkdir()
    for split in builder.info.splits:
        paths = sorted(made.glob(f"{builder.dataset_name}-{split}*.parquet"))
        for index, path in enumerate(paths):
            os.replace(path, target / f"{split}-{index:05d}-of-{len(paths):05d}.parquet")
    info = datasets.DatasetInfo(features=builder.info.features)
    info.splits = datasets.SplitDict()
    for split, value in builder.info.splits.items():
        info.splits.add(datasets.SplitInfo(name=split, num_bytes=value.num_bytes, num_examples=value.num_examples))
    info.dataset_size = sum(value.num_bytes for value in info.splits.values())
    info.download_size = sum(path.stat().st_size for path in target.iterdir())
    info.config_name = name
    return info


def _any_video(work: Path) -> bool:
    table = QuestionTable(work / "questions.arrow")
    return any(pc.any(table.batch(index).column("embed")).as_py() for index in range(table.block_count))


def content_key(files: dict[str, dict], name: str) -> str:
    """Fingerprint of a config's Parquet files: 16 hex digits that change with any byte of its rows.

    Args:
        files: hashes of all Parquet files, by their path in the dataset folder.
        name: the config.
    """
    return fingerprint({path: entry["sha256"] for path, entry in files.items() if path.startswith(f"{name}/")})


def dataset_readme(infos: dict[str, datasets.DatasetInfo], contents: dict[str, str]) -> str:
    """The folder's README: YAML ``configs`` and ``dataset_info`` that ``load_dataset`` reads, and what the configs are.

    Exactly one config is the default: ``preferences``, or, when there is no pair at all, the first that has rows.

    ``load_dataset`` keeps what it read under a key made of the folder's *name* and this YAML block, not of the Parquet
    files. A folder built again with as many rows and bytes, or another folder of the same name, would be answered
    with the old rows; so each config's ``description`` carries the fingerprint of its content.

    Args:
        infos: what was written, by config.
        contents: fingerprint of each config's content.
    """
    default = DEFAULT_CONFIG if DEFAULT_CONFIG in infos else next(iter(infos), None)
    configs, described = [], []
    for name, info in infos.items():
        entry: dict = {"config_name": name}
        if name == default:
            entry["default"] = True
        entry["description"] = f"{DESCRIPTIONS[name]} Content {contents[name]}."
        entry["data_files"] = [{"split": split, "path": f"{name}/{split}-*.parquet"} for split in info.splits]
        configs.append(entry)
        described.append({"config_name": name, **info._to_yaml_dict()})
    header = yaml.safe_dump(
        {"configs": configs, "dataset_info": described}, sort_keys=False, allow_unicode=True, width=1000
    )
    lines = [f"- `{name}`: {DESCRIPTIONS[name]}" for name in infos]
    return (
        f"---\n{header}---\n\n# MMAIP-V, rebuilt\n\n"
        "A rebuild by the kit after arXiv 2411.16201, not the paper authors' own data.\n\n" + "\n".join(lines) + "\n"
    )


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _put_in_place(new: Path, output: Path) -> None:
    """Rename the finished folder to its place; an older one steps aside first and is removed afterwards."""
    old = output.with_name(f".{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        os.replace(output, old)
    os.replace(new, output)
    shutil.rmtree(old, ignore_errors=True)


def recover(output: Path) -> None:
    """Undo a switch of folders that was interrupted between its two renames, and remove unfinished folders."""
    old, new = output.with_name(f".{output.name}.old"), output.with_name(f".{output.name}.new")
    if old.exists() and not output.exists():
        os.replace(old, output)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(new, ignore_errors=True)


def read_provenance(output: Path) -> dict | None:
    """``provenance.json`` of a dataset folder, or None when the folder is none of ours."""
    try:
        return json.loads((output / "provenance.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def is_intact(output: Path, provenance: dict) -> bool:
    """Whether the Parquet files of a dataset folder are those that were written (hashes) and the card is there."""
    files = provenance.get("files", {})
    found = {str(path.relative_to(output)) for path in output.rglob("*.parquet")}
    return (
        found == set(files)
        and (output / "README.md").is_file()
        and all(_sha256(output / name) == entry["sha256"] for name, entry in files.items())
    )
