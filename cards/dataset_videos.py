"""The videos in a dataset's rows: which are there, and which of them a card may show frames of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

CONFIGS = ("preferences", "benchmark")  # those whose rows can hold a video


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


def may_be_shown(provenance: Mapping, source: str | None, license: str | None) -> bool:
    """Whether frames of a video may stand on a card: only where the video itself may be passed on.

    That a row holds the video is not enough: somebody may have put in own copies (``dataset_builder attach``), whatever
    their licence. So the licence has to be an open one, or the build's source has to say ``redistribute: true``; a set
    that is known to forbid it, an unknown licence and a dataset of ids only are never shown.

    Args:
        provenance: of the dataset.
        source: the row's.
        license: the row's.
    """
    from cards.push.checks import OPEN
    from dataset_builder.sources.licenses import UNKNOWN, find_set

    known = find_set(source or "")
    if (known is not None and not known.redistribute) or not license or license.casefold() == UNKNOWN:
        return False
    if provenance.get("ids_only"):
        return False
    sources = provenance.get("sources") or []
    named = [each for each in sources if each.get("source") == source] or sources
    return bool(OPEN.fullmatch(license.casefold())) or (bool(named) and all(each.get("redistribute") for each in named))


def clips_of(folder: Path, question_ids: set[str]) -> Iterator[tuple[str, bytes]]:
    """Question id and video of some pairs, where their rows hold it."""
    import pyarrow.parquet as pq

    for path in sorted((folder / "preferences").glob("*.parquet")):
        where = [("question_id", "in", sorted(question_ids))]
        for row in pq.read_table(path, columns=["question_id", "video"], filters=where).to_pylist():
            if row["video"] and row["video"].get("bytes"):
                yield row["question_id"], row["video"]["bytes"]
