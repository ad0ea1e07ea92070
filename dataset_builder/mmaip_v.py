"""The thin final writer: finished stages to the folder that ``load_dataset`` reads.

This module is what would have been the dataset's loading script before ``datasets`` stopped running those from the
Hub: a :class:`datasets.GeneratorBasedBuilder` with four configs. It reads the assembled rows of the work folder
(``assembled/{questions,responses,pairs}.jsonl`` and ``media.json``) and has ``datasets`` write sharded Parquet. All
files are made in a temporary folder beside the target, which is renamed when it is complete.
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
import yaml

from dataset_builder.errors import KitError
from dataset_builder.schema import CONFIG_SPLITS, DEFAULT_CONFIG, FEATURES, assistant_message, user_message
from dataset_builder.stages import fingerprint, write_atomic, write_json

ASSEMBLED = "assembled"
ROW_GROUP = {"preferences": 8, "benchmark": 8, "responses": 1024, "questions": 1024}  # rows; videos make rows large
DESCRIPTIONS = {
    "preferences": "Preference pairs: the best against the worst answer of the zoo, with the video.",
    "benchmark": "Held-out questions with their reference answers, with the video.",
    "responses": "Every answer of every zoo member with every judge score.",
    "questions": "Every question with where it came from.",
}


def read_rows(path: Path) -> Iterator[dict]:
    """Rows of a JSONL file."""
    with open(path, encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)


@dataclass
class MmaipVConfig(datasets.BuilderConfig):
    """One of the four configs.

    Attributes:
        work: work folder of a finished build.
        embed: put the bytes of the videos into the rows; False leaves ``video`` null.
    """

    work: str = ""
    embed: bool = True


class MmaipV(datasets.GeneratorBasedBuilder):
    """Reads the assembled rows of a work folder and yields the rows of one config, sorted by video."""

    BUILDER_CONFIG_CLASS = MmaipVConfig
    BUILDER_CONFIGS = [  # noqa: RUF012  (the base class declares it so)
        MmaipVConfig(name=name, version=datasets.Version("1.0.0"), description=DESCRIPTIONS[name]) for name in FEATURES
    ]
    DEFAULT_CONFIG_NAME = DEFAULT_CONFIG

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=FEATURES[self.config.name])

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        present = {split for split, _ in self._rows()}
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"split": split})
            for split in CONFIG_SPLITS[self.config.name]
            if split in present
        ]

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        position = 0
        for row_split, row in self._rows():
            if row_split == split:
                yield position, self._with_video(row) if "video" in self.info.features else row
                position += 1

    def _rows(self) -> Iterator[tuple[str, dict]]:
        """(split, row) of this config; the assembled files are sorted by video already."""
        folder = Path(self.config.work) / ASSEMBLED
        questions = {row["question_id"]: row for row in read_rows(folder / "questions.jsonl")}
        name = self.config.name
        if name in ("questions", "benchmark"):
            for row in questions.values():
                if row["split"] in CONFIG_SPLITS[name] and (name == "questions" or row["answers"]):
                    yield row["split"], {key: row[key] for key in FEATURES[name] if key != "video"}
            return
        for row in read_rows(folder / ("responses.jsonl" if name == "responses" else "pairs.jsonl")):
            question = questions[row["question_id"]]
            shared = {key: question[key] for key in ("video_id", "source", "license", "question", "answer")}
            full = {**shared, **row}
            if name == "preferences":
                full["prompt"] = [user_message(question["question"])]
                full["chosen"] = [assistant_message(row["chosen"])]
                full["rejected"] = [assistant_message(row["rejected"])]
            yield question["split"], {key: full[key] for key in FEATURES[name] if key != "video"}

    def _with_video(self, row: dict) -> dict:
        return {**row, "video": self._video(row["video_id"])}

    def _video(self, video_id: str) -> dict | None:
        """The clip as the ``Video`` feature stores it, or None where the licence does not allow copies."""
        if not self.config.embed:
            return None
        if not hasattr(self, "_media"):
            self._media = json.loads((Path(self.config.work) / ASSEMBLED / "videos.json").read_text())
            self._last: tuple[str, dict] | None = None
        entry = self._media.get(video_id)
        if entry is None:
            return None
        if self._last is None or self._last[0] != video_id:  # rows are sorted by video: read each clip once
            data = Path(entry["path"]).read_bytes()
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                raise KitError(f"{entry['path']}: the file changed while the build ran; run the same command again")
            self._last = (video_id, {"bytes": data, "path": f"{video_id}{Path(entry['path']).suffix.lower()}"})
        return self._last[1]


def write_dataset(
    work: Path, output: Path, embed: bool, extra: dict[str, dict], max_shard_size: str = "500MB"
) -> dict[str, dict[str, int]]:
    """Write the dataset folder from a finished work folder and put it in the place of an older one.

    Args:
        work: holds ``assembled/``.
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
    builder = MmaipV(
        config_name=name,
        cache_dir=str(scratch / "cache"),
        writer_batch_size=ROW_GROUP[name],
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
