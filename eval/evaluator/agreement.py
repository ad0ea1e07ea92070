"""How far an evaluator agrees with others on the same answers: the rows that are released, and figures of them.

``results/verdicts.parquet`` of an evaluator's repo has one row for every answer and every judge of it:

    answers_of, question_id, video_id, question_type, question, response   which answer
    judge, fingerprint, role                                               who judged it
    correct (1, 0 or null), probability, score                             what was said

``role`` is ``evaluator`` (this judge), ``without_frames`` (this judge, shown no video), ``truth`` (verdicts known
to be right), ``judge`` (another judge's) or ``gold`` (labels on the answers about some videos, drawn at random). The
figures of the card are computed from these rows when it is written, and again by `python -m cards verify`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset_builder.errors import KitError

if TYPE_CHECKING:
    from eval.results import Results

FOLDER, FILE = "results", "verdicts.parquet"
EVALUATOR, WITHOUT_FRAMES, TRUTH, JUDGE, GOLD = ROLES = ("evaluator", "without_frames", "truth", "judge", "gold")
_ANSWER = ("question_id", "video_id", "question_type", "question", "response")
_SAID = ("correct", "probability", "score")
COLUMNS = ("answers_of", *_ANSWER, "judge", "fingerprint", "role", *_SAID)


def verdict_rows(results: Results, role: str, answers_of: str | None = None) -> list[dict[str, Any]]:
    """The rows of one judged set of answers.

    Args:
        results: judged answers.
        role: of the judge, see ``ROLES``.
        answers_of: whose answers they are; the results' name by default.
    """
    judge = {"judge": results.judge.get("name"), "fingerprint": results.judge.get("fingerprint"), "role": role}
    told = {"answers_of": answers_of or results.name}
    return [{**told, **{key: row.get(key) for key in _ANSWER + _SAID}, **judge} for row in results.rows]


def write_verdicts(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write the rows as Parquet; the same rows give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    types = {"correct": pa.int8(), "probability": pa.float64(), "score": pa.float64()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS])
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [[None if row.get(name) is None else _cast(name, row[name]) for row in rows] for name in COLUMNS]
    arrays = [pa.array(column, type=schema.field(name).type) for name, column in zip(COLUMNS, columns)]
    parquet.write_table(pa.Table.from_arrays(arrays, schema=schema), path, compression="zstd")
    return path


def read_verdicts(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a file.

    Raises:
        KitError: it cannot be read, or is something else.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        rows = parquet.ParquetFile(path).read().to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise KitError(f"{path}: cannot be read as verdicts ({str(error).splitlines()[0]})") from None
    missing = [name for name in COLUMNS if rows and name not in rows[0]]
    if missing or not rows:
        raise KitError(f"{path}: holds no verdicts" + (f" (no column '{missing[0]}')" if missing else ""))
    return rows


@dataclasses.dataclass(frozen=True)
class Compared:
    """This judge beside another on one model's answers.

    Attributes:
        answers_of: whose answers.
        other: role of the other judge.
        name: of the other judge.
        answers: with a verdict of both.
        same: share of equal verdicts, an estimate clustered by video.
        kappa: Cohen's, an `eval.stats.Agreement`.
        missed: share of the answers that the other calls right and this judge does not; None without any.
        passed: share of the answers that the other calls wrong and this judge does not; None without any.
    """

    answers_of: str
    other: str
    name: str
    answers: int
    same: Any
    kappa: Any
    missed: float | None
    passed: float | None


@dataclasses.dataclass(frozen=True)
class Said:
    """What this judge says of one model's answers.

    Attributes:
        answers_of: whose answers.
        answers: all of them.
        unjudged: without a verdict.
        share: right ones by its verdicts, an estimate clustered by video.
        blind: the same, shown no frames; None where it was not asked so.
        truth: share of right ones where the truth is known, else None.
        gold_videos: with gold labels; 0 without any.
        debiased: its share put right by them, an `eval.stats.Debiased`; None without or with too few.
    """

    answers_of: str
    answers: int
    unjudged: int
    share: Any
    blind: Any
    truth: Any
    gold_videos: int
    debiased: Any


def said(rows: Iterable[Mapping[str, Any]]) -> list[Said]:
    """What this judge says, one entry for each model, in the order of the rows."""
    from eval.stats import debiased_mean

    found = []
    for name, sides in _by_model(rows).items():
        own = sides.get(EVALUATOR, {})
        gold, videos, debiased = sides.get(GOLD, {}), [row["video_id"] for row in own.values()], None
        if not any(row["correct"] is not None for row in own.values()):
            continue
        if gold:
            labels = [gold[q]["correct"] if q in gold else None for q in own]
            try:
                debiased = debiased_mean([row["correct"] for row in own.values()], videos, labels)
            except ValueError:
                debiased = None  # too few of them
        unjudged = sum(row["correct"] is None for row in own.values())
        labelled = {row["video_id"] for row in gold.values() if row["correct"] is not None}
        parts = [_share(sides.get(role, {}).values()) for role in (EVALUATOR, WITHOUT_FRAMES, TRUTH)]
        found.append(Said(name, len(own), unjudged, *parts, len(labelled), debiased))
    return found


def compared(rows: Iterable[Mapping[str, Any]]) -> list[Compared]:
    """This judge beside every other one, model by model; gold labels are no judge."""
    from eval.stats import cluster_mean, cohen_kappa

    found = []
    for name, sides in _by_model(rows).items():
        for role in (TRUTH, JUDGE, WITHOUT_FRAMES):
            own, other = sides.get(EVALUATOR, {}), sides.get(role, {})
            both = [q for q in own if q in other and None not in (own[q]["correct"], other[q]["correct"])]
            if not both:
                continue
            videos = [own[q]["video_id"] for q in both]
            mine, theirs = ([side[q]["correct"] for q in both] for side in (own, other))
            same = cluster_mean([float(a == b) for a, b in zip(mine, theirs)], videos)
            right = [a for a, b in zip(mine, theirs) if b]
            wrong = [a for a, b in zip(mine, theirs) if not b]
            found.append(
                Compared(
                    answers_of=name,
                    other=role,
                    name=other[both[0]]["judge"] or role,
                    answers=len(both),
                    same=same,
                    kappa=cohen_kappa(mine, theirs, videos),
                    missed=1 - sum(right) / len(right) if right else None,
                    passed=sum(wrong) / len(wrong) if wrong else None,
                )
            )
    return found


def _by_model(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Mapping[str, Any]]]]:
    """Rows by model, role and question."""
    found: dict[str, dict[str, dict[str, Mapping[str, Any]]]] = {}
    for row in rows:
        found.setdefault(row["answers_of"], {}).setdefault(row["role"], {})[row["question_id"]] = row
    return found


def _share(rows: Iterable[Mapping[str, Any]]):
    from eval.stats import cluster_mean

    judged = [row for row in rows if row["correct"] is not None]
    return cluster_mean([row["correct"] for row in judged], [row["video_id"] for row in judged]) if judged else None


def _cast(name: str, value: Any) -> Any:
    return int(value) if name == "correct" else float(value) if name in _SAID else str(value)
