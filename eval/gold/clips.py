"""The clips of a benchmark as files that a browser plays."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path

from dataset_builder.errors import KitError
from dataset_builder.media.browser import browser_mp4, plays_in_browsers
from eval.runner import MediaIndex, load_rows, video_source

SPLITS = ("test", "validation")


class Clips:
    """Finds the videos of a dataset's ``benchmark`` config, in the dataset itself or on this machine.

    Rows are looked up when they are needed: only the clips that are shown are read.

    Args:
        dataset: a dataset folder or Hub id; None if ``media`` alone knows where the videos are.
        media: ``media.json`` (sha256 → path); each file's hash is verified.

    Raises:
        KitError: if there is neither, or they cannot be read.
    """

    def __init__(self, dataset: str | Path | None, media: str | Path | None):
        if dataset is None and media is None:
            raise KitError("give --dataset DATASET or --media FILE, or there is no video to show")
        self._where = " or ".join(str(place) for place in (dataset, media) if place is not None)
        self._attach = MediaIndex(media) if media else None
        self._rows: dict[str, tuple] = {}
        self._lock = threading.Lock()
        self._scratch = tempfile.TemporaryDirectory(prefix="mmaip-v-label-")
        if dataset is not None:
            self._index(dataset)

    def _index(self, dataset: str | Path) -> None:
        failures = []
        for split in SPLITS:
            try:
                rows = load_rows(dataset, split, None)
            except KitError as error:
                failures.append(error)
                continue
            for number, video_id in enumerate(rows["video_id"]):
                self._rows.setdefault(str(video_id), (rows, number))
        if len(failures) == len(SPLITS):
            raise failures[0]

    def source(self, video_id: str) -> str | bytes:
        """Path or content of a video.

        Raises:
            KitError: if it is not there, or has changed.
        """
        rows, number = self._rows.get(video_id, (None, 0))
        found = video_source(rows[number]["video"] if rows is not None else None, video_id, self._attach)
        if found is None:
            reason = "holds no video of it; add --media FILE" if rows is not None else "does not know it"
            raise KitError(f"video {video_id} cannot be shown: {self._where} {reason}")
        return found

    def check(self, video_ids: Iterable[str]) -> None:
        """Find every video before labelling begins.

        Raises:
            KitError: if one is missing, naming the first and how many there are.
        """
        wanted, missing = list(dict.fromkeys(video_ids)), []
        for video_id in wanted:
            try:
                self.source(video_id)
            except KitError as error:
                missing.append(str(error))
        if missing:
            more = f" ({len(missing)} of {len(wanted)} videos are missing)" if len(missing) > 1 else ""
            raise KitError(missing[0] + more)

    def file(self, video_id: str) -> Path:
        """A file that a browser plays: the clip as it is, or as H.264 if it is in a codec that browsers lack.

        Raises:
            KitError: if the video is not there or cannot be decoded.
        """
        path = Path(self._scratch.name) / f"{hashlib.sha256(video_id.encode()).hexdigest()[:32]}.mp4"
        with self._lock:  # a browser asks for several ranges at once
            if path.exists():
                return path
            source = self.source(video_id)
            if isinstance(source, str) and plays_in_browsers(source):
                return Path(source)
            part = path.with_suffix(".part")
            part.write_bytes(source if plays_in_browsers(source) else browser_mp4(source))
            return part.replace(path)
