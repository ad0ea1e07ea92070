"""The clips of the report: which may and can be in the page, and their frames for a reader without a script."""

from __future__ import annotations

import base64
import io
from functools import cached_property

from cards.report.drawing import Drawing
from cards.run_folder import Run
from dataset_builder.errors import KitError

# Why a pair has no player; the page says it in these words.
REASONS = {
    "licence": "Its licence does not allow copies, so neither the dataset nor this page has the clip.",
    "absent": "The dataset holds no copy of the clip, and none is at hand here.",
    "broken": "The clip cannot be decoded.",
    "full": "The room for clips on this page was used up before this one's turn.",
}
REASON_WORDS = {  # after a number of pairs
    "licence": "kept out by their licence",
    "absent": "whose clip is not at hand",
    "broken": "whose clip cannot be decoded",
    "full": "for which there was no room (clips are taken in the order drawn, while they fit)",
}
MISFITS = 20  # clips in a row that do not fit any more, after which none is tried
SAMPLE_FRAMES = 8
FRAME_SIDE = 96  # px, at least; small frames grow by a whole factor, so that pixels stay square and sharp


class ClipFinder:
    """Finds the clips of pairs: in the dataset's rows, else the local copy, if its licence allows copies of it.

    Args:
        run: the run.
        drawing: the pairs that may be asked for.
    """

    def __init__(self, run: Run, drawing: Drawing):
        from dataset_builder.build import work_folder

        self._work = work_folder(run.dataset)
        self._questions = {pair["question_id"] for pair in drawing.pairs}
        self._files: dict = {}

    def find(self, pair: dict) -> tuple[bytes | str | None, str | None]:
        """(bytes or path, None), or (None, a key of ``REASONS``)."""
        video = self._stored(pair["file"], pair["row"])
        if video and video.get("bytes"):
            return video["bytes"], None
        allowed = self._allowed.get(pair["question_id"])
        if allowed is None:
            return None, "absent"
        if not allowed:
            return None, "licence"
        try:
            path = self._copies.find(pair["video_id"]) if self._copies else None
        except KitError:  # gone, or another file by now
            path = None
        return (path, None) if path else (None, "absent")

    def _stored(self, path: str, row: int) -> dict | None:
        """The ``video`` of one row; reads one row group."""
        import pyarrow.parquet as parquet

        if path not in self._files:
            self._files[path] = parquet.ParquetFile(path)
        file = self._files[path]
        if "video" not in file.schema_arrow.names:
            return None
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row < rows:
                return file.read_row_group(group, columns=["video"]).column("video")[row].as_py()
            row -= rows
        return None

    @cached_property
    def _allowed(self) -> dict[str, bool]:
        """Whether a question's clip may be copied, as the build found; empty when its work folder is gone."""
        import pyarrow as pa
        import pyarrow.compute as pc

        from dataset_builder.table import QuestionTable

        try:
            table = QuestionTable(self._work / "questions.arrow")
        except KitError:
            return {}
        wanted, found = pa.array(sorted(self._questions), pa.string()), {}
        for index in range(table.block_count):
            block = table.batch(index)
            block = block.filter(pc.is_in(block.column("question_id"), wanted))
            found |= dict(zip(block.column("question_id").to_pylist(), block.column("embed").to_pylist()))
        return found

    @cached_property
    def _copies(self):
        from eval.runner import MediaIndex

        path = self._work / "media.json"
        return MediaIndex(path) if path.is_file() else None


def shelve(finder: ClipFinder, pairs: list[dict], room: int) -> tuple[list[bytes], dict[str, int], dict[str, str]]:
    """Take the clips of pairs, in their order, each once, as long as they fit.

    A clip that does not fit is passed over, so that one long video does not cost all others their player.

    Args:
        finder: where the clips are.
        pairs: in the order in which they were drawn.
        room: bytes of video at most.

    Returns:
        The clips as browsers play them, the number of each by video id, and a key of ``REASONS`` for every other
        video id.
    """
    from dataset_builder.media.browser import browser_mp4, plays_in_browsers
    from dataset_builder.media.source import source_size

    clips: list[bytes] = []
    shelves: dict[str, int] = {}
    reasons: dict[str, str] = {}
    misfits = 0
    for pair in pairs:
        video_id = pair["video_id"]
        if video_id in shelves or video_id in reasons:
            continue
        if misfits == MISFITS:
            reasons[video_id] = "full"
            continue
        source, reason = finder.find(pair)
        if source is None:
            reasons[video_id] = reason
            continue
        try:
            fits = source_size(source) <= room  # known before anything is encoded
            if fits:
                clip = _content(source) if plays_in_browsers(source) else browser_mp4(source)
                fits = len(clip) <= room
        except KitError:  # the build said so already; a report does not fail over one clip
            reasons[video_id] = "broken"
            continue
        if not fits:
            misfits += 1
            reasons[video_id] = "full"
            continue
        misfits, room = 0, room - len(clip)
        shelves[video_id] = len(clips)
        clips.append(clip)
    return clips, shelves, reasons


def _content(source: bytes | str) -> bytes:
    if isinstance(source, bytes):
        return source
    with open(source, "rb") as file:
        return file.read()


def sample_pairs(finder: ClipFinder, drawing: Drawing, number: int) -> list[dict]:
    """The pairs that were drawn first, for a reader without a script.

    Returns:
        Pairs with ``frames`` (of :func:`frame_images`; empty when the clip is not in the page), their ``reason``, and
        ``others`` (the remaining answers to the question, best first).
    """
    samples = []
    for pair in drawing.pairs[:number]:
        rows = drawing.answers.get(pair["question_id"], [])
        known = {row["response_id"]: row for row in rows}
        shown = (pair["response_id_chosen"], pair["response_id_rejected"])
        source, reason = finder.find(pair)
        frames = frame_images(source)
        samples.append(
            {
                **pair,
                "frames": frames,
                "reason": None if frames else REASONS[reason or "broken"],
                "chosen": known.get(shown[0]),
                "rejected": known.get(shown[1]),
                "others": [row for row in rows if row["response_id"] not in shown],
            }
        )
    return samples


def frame_images(video: bytes | str | None, number: int = SAMPLE_FRAMES) -> list[dict]:
    """Frames of a clip as ``{src, seconds, width, height}``; empty when there is no clip or it cannot be decoded."""
    from PIL import Image

    from dataset_builder.media import sample_frames

    if video is None:
        return []
    try:
        frames = sample_frames(video, number)
    except KitError:
        return []
    images = []
    for array, seconds in zip(frames.array, frames.timestamps):
        image = Image.fromarray(array)
        factor = -(-FRAME_SIDE // min(image.size))
        if factor > 1:
            image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
        elif min(image.size) > 2 * FRAME_SIDE:
            image.thumbnail((4 * FRAME_SIDE, 2 * FRAME_SIDE))
        data = io.BytesIO()
        image.save(data, "PNG", optimize=True)
        source = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
        images.append({"src": source, "seconds": seconds, "width": image.width, "height": image.height})
    return images
