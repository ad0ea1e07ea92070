"""Whether a dataset may hold the videos of a source: what a person says, else what is known of well-known sets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dataset_builder.errors import KitError
from dataset_builder.settings import read_yaml

UNKNOWN = "unknown"


@dataclass(frozen=True)
class KnownSet:
    """A well-known set of videos.

    Attributes:
        name: as it is written.
        license: the word for its terms.
        redistribute: whether a dataset may contain its videos.
        homepage: of the set.
        terms: where its terms are.
        videos: whose the videos are.
    """

    name: str
    license: str
    redistribute: bool
    homepage: str
    terms: str
    videos: str


@dataclass(frozen=True)
class Terms:
    """What holds for one row: its licence, and whether the dataset may embed the video."""

    license: str
    embed: bool


@cache
def known_sets() -> dict[str, KnownSet]:
    """The sets of ``licenses.yaml``, by every name they go by (small letters and digits only)."""
    found = {}
    for name, entry in read_yaml(Path(__file__).with_name("licenses.yaml")).items():
        entry = dict(entry)
        names = [name, *entry.pop("aliases")]
        found.update({_plain(each): KnownSet(name, **entry) for each in names})
    return found


def find_set(source: str) -> KnownSet | None:
    """The well-known set of this name, whatever its spelling (case, hyphens, spaces)."""
    return known_sets().get(_plain(source))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def terms_of(source: str, license: str | None, redistribute: bool | None) -> Terms:
    """Licence and embedding of videos.

    Args:
        source: name of the source or set.
        license: what the row or source says; None takes what is known of the set, else ``unknown``.
        redistribute: what the source says; None takes what is known of the set, else False.

    Raises:
        KitError: ``redistribute`` is True for a set whose videos may not be passed on.
    """
    known = find_set(source)
    if redistribute and known is not None and not known.redistribute:
        raise KitError(
            f"redistribute: true is refused for {known.name} ({known.videos}; see {known.terms}): leave it out, and "
            "the dataset carries ids and hashes"
        )
    license = (license or "").strip() or (known.license if known else UNKNOWN)
    if redistribute is None:
        redistribute = known is not None and known.redistribute
    return Terms(license, bool(redistribute) and license.casefold() != UNKNOWN)
