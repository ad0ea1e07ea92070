"""The videos in a dataset's rows: which are there, and which of them may be passed on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

CONFIGS = ("preferences", "benchmark")  # those whose rows can hold a video
# Licences under which anybody may pass on copies, by the Hub's ids; others need `redistribute: true` in the build.
OPEN = re.compile(
    r"cc0-1\.0|cc-by(-sa|-nc|-nd|-nc-sa|-nc-nd)?-\d\.\d|apache-2\.0|mit|bsd.*|pddl|odc-by|cc|unlicense|0bsd"
)


def videos_held(folder: Path) -> dict[str, bool]:
    """By video id, whether any row holds the video's bytes; videos of no row in `CONFIGS` are left out.

    Args:
        folder: of the dataset.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    found: dict[str, bool] = {}
    for name in CONFIGS:
        for path in sorted((folder / name).glob("*.parquet")):
            table = pq.ParquetFile(path)
            leaves = [table.schema.column(place).path for place in range(len(table.schema))]
            for group in range(table.num_row_groups):
                videos = table.read_row_group(group, columns=["video_id"]).column("video_id").to_pylist()
                held: list[bool] = [False] * len(videos)
                if "video.bytes" in leaves:
                    about = table.metadata.row_group(group).column(leaves.index("video.bytes")).statistics
                    if about is not None and about.has_null_count and about.null_count in (0, len(videos)):
                        held = [about.null_count == 0] * len(videos)  # the bytes themselves need not be read
                    else:
                        there = table.read_row_group(group, columns=["video.bytes"]).column("video").combine_chunks()
                        held = pc.is_valid(pc.struct_field(there, "bytes")).to_pylist()
                for video, holds in zip(videos, held, strict=True):
                    found[video] = found.get(video, False) or holds
    return found


def why_not_passed_on(provenance: Mapping, source: str | None, license: str | None) -> str | None:
    """Why a video may not be passed on, nor frames of it stand on a card; None when it may.

    That a row holds the video is not enough: somebody may have put in own copies (``dataset_builder attach``), whatever
    their licence. So the licence has to be an open one, or every source of the build that the row may come from has to
    say ``redistribute: true``; a set that is known to forbid it, an unknown licence and a dataset of ids only never do.

    Args:
        provenance: of the dataset.
        source: the row's.
        license: the row's.
    """
    from dataset_builder.sources.licenses import UNKNOWN, find_set

    known = find_set(source or "")
    if known is not None and not known.redistribute:
        return f"{known.name}: {known.videos}"
    if not license or license.casefold() == UNKNOWN:
        return "no licence is known"
    if provenance.get("ids_only"):
        return "provenance.json says ids_only"
    sources = provenance.get("sources") or []
    named = [each for each in sources if each.get("source") == source] or sources
    if OPEN.fullmatch(license.casefold()) or (named and all(each.get("redistribute") for each in named)):
        return None
    return "it is no open licence, and its source in provenance.json has no redistribute: true"


def clips_of(folder: Path, question_ids: set[str]) -> Iterator[tuple[str, bytes]]:
    """Question id and video of some pairs, where their rows hold it."""
    import pyarrow.parquet as pq

    for path in sorted((folder / "preferences").glob("*.parquet")):
        where = [("question_id", "in", sorted(question_ids))]
        for row in pq.read_table(path, columns=["question_id", "video"], filters=where).to_pylist():
            if row["video"] and row["video"].get("bytes"):
                yield row["question_id"], row["video"]["bytes"]
