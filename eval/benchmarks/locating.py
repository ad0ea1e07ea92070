"""Where a benchmark's rows and videos are, given one folder, file or Hub id."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dataset_builder.errors import KitError
from dataset_builder.sources.videos import ENDINGS
from eval.benchmarks.base import Benchmark

# Below the folder that a person names: as the sets are published, and flat.
_QUESTIONS = ("", "test", "dataset", "video_instruction/test", "annotations")
_VIDEOS = ("", "video_data", "video_data/test", "test", "videos", "frames")
_LOOKED_AT = 50  # names by which a folder of videos is recognised
QUESTIONS, ANSWERS = "_q.json", "_a.json"  # how ActivityNet-QA's two files end


@dataclass(frozen=True)
class KitData:
    """A dataset of this kit, by its folder or Hub id."""

    dataset: str


@dataclass(frozen=True)
class PublishedData:
    """A question file in its published shape.

    Attributes:
        questions: the file.
        answers: the file of answers, where they stand apart.
        others: files of the same benchmark that lie there too and are not read.
    """

    questions: Path
    answers: Path | None = None
    others: tuple[Path, ...] = ()


def locate(benchmark: Benchmark, data: str) -> KitData | PublishedData:
    """Tell what lies at ``data``.

    Args:
        benchmark: whose file names are looked for.
        data: a folder with a ``benchmark`` config or published question files, a question file, or a Hub id.

    Raises:
        KitError: nothing that the benchmark can be read from.
    """
    path = Path(data)
    if path.is_file():
        return _published(benchmark, [path])
    if not path.is_dir():
        return KitData(data)  # a Hub id; if it can be none, loading says so
    if (path / "benchmark").is_dir() or not benchmark.files:
        return KitData(data)
    places = [path / part for part in _QUESTIONS]
    found = [place / name for name in benchmark.files for place in places if (place / name).is_file()]
    if not found:
        wanted = " or ".join(benchmark.files)
        raise KitError(f"{data}: has neither a `benchmark` config (a dataset of this kit) nor {wanted}")
    return _published(benchmark, found)


def _published(benchmark: Benchmark, found: list[Path]) -> PublishedData:
    first, *others = found
    if not benchmark.files:
        raise KitError(f"{first}: the task {benchmark.name} reads a dataset folder or Hub id, not a file")
    if not first.name.endswith(QUESTIONS):
        return PublishedData(first, None, tuple(others))
    answers = first.with_name(first.name.removesuffix(QUESTIONS) + ANSWERS)
    if not answers.is_file():
        raise KitError(f"{first}: its answers are missing: {answers.name} belongs beside it")
    return PublishedData(first, answers, tuple(others))


def video_folder(questions: Path, names: Iterable[str], prefix: str = "") -> Path:
    """The folder in which most of these video names are found, nearest to the question file first.

    Args:
        questions: the question file; its folder, the two above and what test sets call their video folders are tried.
        names: as the rows have them.
        prefix: what file names may have in front.

    Returns:
        The question file's own folder if no name is found anywhere: the reader then says of each what is missing.
    """
    names = list(dict.fromkeys(name for name in names if isinstance(name, str) and _is_inner(name)))[:_LOOKED_AT]
    # Absolute, or a file named without folders would have no folders above it.
    own = questions.absolute().parent
    places = [base / part for base in (own, *own.parents[:2]) for part in _VIDEOS]
    counts = [sum(_is_there(place, name, prefix) for name in names) if place.is_dir() else 0 for place in places]
    best = max(counts)
    return places[counts.index(best)] if best else own


def _is_inner(name: str) -> bool:
    return bool(name.strip()) and "\0" not in name and not Path(name).is_absolute() and ".." not in Path(name).parts


def _is_there(place: Path, name: str, prefix: str) -> bool:
    path = place / name
    stems = [path.name, prefix + path.name] if prefix else [path.name]
    try:
        return any(path.with_name(stem + ending).exists() for stem in stems for ending in ("", *ENDINGS))
    except OSError:  # a name too long for any file
        return False
