"""Which videos get gold labels: whole videos at random, as estimates clustered by video need them.

The sample is recorded in a JSON beside the labels (``gold.jsonl`` → ``gold.sample.json``)::

    {"format": "mmaip-v-gold-sample/1", "seed": 0, "population": 120, "population_sha256": "…16 hex…",
     "videos": ["91ab…", …]}

``videos`` stand in random order and are labelled in that order, so that wherever an annotator stops, the finished
videos are again a random sample. A longer sample begins with the shorter one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dataset_builder.errors import KitError
from eval.results import read_json, write_text

if TYPE_CHECKING:
    from eval.results import Results

FORMAT = "mmaip-v-gold-sample/1"
FEWEST_VIDEOS = 20  # with fewer, clustered intervals from gold labels are too narrow


@dataclass(frozen=True)
class Sample:
    """Videos drawn at random.

    Attributes:
        seed: everything follows from it and the population.
        population: how many videos there were to draw from.
        population_sha256: 16 hex digits over their ids.
        videos: the drawn ids in random order.
    """

    seed: int
    population: int
    population_sha256: str
    videos: tuple[str, ...]

    def save(self, path: str | Path) -> Path:
        """Write the sample; the same sample gives the same bytes."""
        content = {
            "format": FORMAT,
            "seed": self.seed,
            "population": self.population,
            "population_sha256": self.population_sha256,
            "videos": list(self.videos),
        }
        return write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Sample:
        """Read what :meth:`save` wrote.

        Raises:
            KitError: if the file is missing or something else.
        """
        content = read_json(path)
        kinds = {"seed": int, "population": int, "population_sha256": str, "videos": list}
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise KitError(f"{path}: not a sample of this kit (expected format '{FORMAT}')")
        for key, kind in kinds.items():
            if not isinstance(content.get(key), kind):
                raise KitError(f"{path}: field '{key}' must be of type {kind.__name__}")
        return cls(content["seed"], content["population"], content["population_sha256"], tuple(content["videos"]))


def draw_sample(results: Results, videos: int, seed: int = 0) -> Sample:
    """Draw so many whole videos of a results file; all their questions belong to the sample.

    Raises:
        KitError: if there are not so many videos, or fewer than one is wanted.
    """
    return draw_videos((row["video_id"] for row in results.rows), videos, seed)


def draw_videos(video_ids: Iterable[str], videos: int, seed: int = 0) -> Sample:
    """Draw so many of these videos, each named once or more often, in any order.

    Videos are ordered by a hash of seed and id: each order is equally likely over seeds, a longer draw begins with the
    shorter one, and the order two videos stand in does not depend on the others.

    Raises:
        KitError: if there are not so many videos, or fewer than one is wanted.
    """
    population = sorted({str(video_id) for video_id in video_ids})
    if videos < 1:
        raise KitError(f"a sample needs at least 1 video, not {videos}")
    if videos > len(population):
        raise KitError(f"there are only {len(population)} videos; --videos {len(population)} takes all of them")
    order = sorted(population, key=lambda video_id: (hashlib.sha256(f"{seed}:{video_id}".encode()).digest(), video_id))
    return Sample(seed, len(population), _population_hash(population), tuple(order[:videos]))


def extend_sample(sample: Sample, video_ids: Iterable[str], videos: int) -> Sample:
    """The same sample with more videos; one that holds enough already stays as it is.

    Raises:
        KitError: if it was drawn from other videos.
    """
    ids = list(video_ids)
    longer = draw_videos(ids, max(videos, len(sample.videos), 1), sample.seed)
    if longer.population_sha256 != sample.population_sha256 or longer.videos[: len(sample.videos)] != sample.videos:
        raise KitError(
            f"the sample was drawn from {sample.population} other videos than these {longer.population}; "
            "give the labels of another benchmark another --output"
        )
    return longer


def sample_path(labels: str | Path) -> Path:
    """Where the sample of a label file lies."""
    return Path(labels).with_suffix(".sample.json")


def _population_hash(population: list[str]) -> str:
    return hashlib.sha256("\n".join(population).encode()).hexdigest()[:16]
