"""Writing an export: read the pairs, write them in a shape beside the target, rename it when it is complete."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dataset_builder.errors import KitError
from dataset_builder.export.images import IMAGE_FORMATS, image_rows, write_images
from dataset_builder.export.jsonl import NOTES, ROWS, readable_pairs, write_jsonl
from dataset_builder.export.pairs import REASONS, Media, Pair, read_pairs
from dataset_builder.loading import dataset_folder, read_media, split_files
from dataset_builder.media import file_sha256
from dataset_builder.stages import fingerprint, write_json

SHAPES = (*ROWS, "images")
FILE = "export.json"


@dataclass(frozen=True)
class ExportReport:
    """What :func:`export` did.

    Attributes:
        shape: of the rows.
        split: of the dataset.
        rows: pairs that were written.
        videos: video files that were written (0 for ``images``).
        left_out: pairs that were not, by reason.
        output: the folder.
        notes: videos that were written and that the trainer will show wrongly, by reason.
    """

    shape: str
    split: str
    rows: int
    videos: int
    output: str
    left_out: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """One line for each reason why rows were left out, and for each note."""
        lines = [f"left out: {count} of {self.split}: {REASONS[reason]}" for reason, count in self.left_out.items()]
        return [*lines, *(f"note: {count} of {self.videos} videos {NOTES[why]}" for why, count in self.notes.items())]

    def __str__(self) -> str:
        numbers = {"shape": self.shape, "split": self.split, "rows": self.rows, "videos": self.videos}
        body = [f"{name:<10} {value}" for name, value in numbers.items()]
        return "\n".join([*self.lines(), *body, f"{'output':<10} {self.output}"])


def export(
    dataset: str | Path,
    shape: str,
    output: str | Path,
    split: str = "train",
    media: str | Path | dict[str, str] | None = None,
    num_frames: int = 8,
    image_format: str = "jpeg",
    max_shard_mb: int = 256,
    progress: bool = True,
    overwrite: bool = False,
) -> ExportReport:
    """Write the preference pairs of one split in the shape that another trainer reads.

    Rows whose video the dataset does not hold and ``media`` does not name are left out and counted, as are rows that
    the trainer would drop, replace or misread.

    Args:
        dataset: a dataset folder or a Hub id.
        shape: ``ms_swift``, ``llama_factory`` or ``hound`` (JSONL and video files), or ``images`` (Parquet, for TRL).
        output: folder to write. ms-swift's rows hold absolute paths: export again after moving it.
        split: ``train`` or ``validation``.
        media: a person's own copies: ``media.json`` of a build, or paths by sha256.
        num_frames: for ``images``: frames a video, evenly spaced.
        image_format: for ``images``: ``jpeg`` or ``png`` (exact and several times larger).
        max_shard_mb: for ``images``: megabytes of pictures in one Parquet file.
        progress: show a progress bar on stderr.
        overwrite: replace another export at ``output``.

    Raises:
        KitError: no such dataset, split or shape, no row can be exported, or the output may not be replaced.
    """
    if shape not in SHAPES:
        raise KitError(f"shape '{shape}': is not one of {', '.join(SHAPES)}")
    if image_format not in IMAGE_FORMATS:
        raise KitError(f"image_format '{image_format}': is not one of {', '.join(IMAGE_FORMATS)}")
    if num_frames < 1 or max_shard_mb < 1:
        raise KitError("num_frames and max_shard_mb must be 1 or more")
    from dataset_builder.mmaip_v import read_provenance

    output = Path(os.path.abspath(output))
    copies = read_media(media)
    folder = dataset_folder(dataset, f"preferences/{split}-*.parquet")
    files = split_files(folder, "preferences")
    if split not in files:
        raise KitError(f"{dataset}: has no split '{split}'; 'preferences' has {', '.join(files)}")
    provenance = read_provenance(folder) or {}
    options = {"num_frames": num_frames, "image_format": image_format, "max_shard_mb": max_shard_mb}
    key = fingerprint(
        {
            "shape": shape,
            "split": split,
            "content": _content(folder, files[split], provenance),
            "media": sorted(copies.items()),
            "output": str(output),
            **(options if shape == "images" else {}),
        }
    )
    done = _finished(output, key, overwrite)
    if done is not None:
        return done
    new = output.with_name(f".{output.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    left_out, notes = Counter(), Counter()
    pairs = _bar(read_pairs(files[split], Media(copies), left_out, tags=shape in ROWS), progress)
    try:
        if shape == "images":
            rows, videos = image_rows(pairs, num_frames, image_format, left_out), 0
            count = write_images(rows, new, split, max_shard_mb * 10**6)
        else:
            pairs = readable_pairs(pairs, shape, left_out, notes)
            count, videos = write_jsonl(pairs, shape, new, output, split, provenance.get("name") or "mmaip_v")
    except OSError as error:
        raise KitError(f"{output}: cannot be written ({error.strerror or error})") from None
    told = dict(sorted(left_out.items())), {why: notes[why] for why in NOTES if notes[why]}
    report = ExportReport(shape, split, count, videos, str(output), *told)
    if not count:
        shutil.rmtree(new, ignore_errors=True)
        raise KitError(f"{dataset}: nothing to export. {'; '.join(report.lines()) or 'It has no pairs.'}")
    write_json(new / FILE, {"key": key, "report": asdict(report), "dataset": provenance.get("fingerprint")})
    if output.exists():
        shutil.rmtree(output)
    os.replace(new, output)
    return report


def _content(folder: Path, files: list[Path], provenance: dict) -> list[str]:
    """Hashes of Parquet files; a dataset of the kit says them itself."""
    known = provenance.get("files", {})
    names = [path.relative_to(folder).as_posix() for path in files]
    return [known[name]["sha256"] if name in known else file_sha256(folder / name) for name in names]


def _finished(output: Path, key: str, overwrite: bool) -> ExportReport | None:
    """The report of the same export, when it is there already.

    Raises:
        KitError: something else is there.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    try:
        old = json.loads((output / FILE).read_text(encoding="utf-8"))
        same, report = old["key"] == key, ExportReport(**old["report"])
    except (OSError, ValueError, KeyError, TypeError):
        raise KitError(f"{output}: exists and is not an export of this kit: choose another --output") from None
    if not same and not overwrite:
        raise KitError(f"{output}: is another export: choose another --output, or give --overwrite to replace it")
    return report if same else None


def _bar(pairs: Iterable[Pair], progress: bool) -> Iterator[Pair]:
    from tqdm.auto import tqdm

    yield from tqdm(pairs, desc="export", unit="pair", disable=not progress)
