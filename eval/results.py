"""Saved results of one evaluation: a verdict per question, and the comparison of two of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dataset_builder.errors import KitError
from eval.fingerprint import describe_judge, same_judge
from eval.stats import Estimate, Paired, cluster_mean, paired_test

FORMAT = "mmaip-v-results/2"
READABLE = (FORMAT, "mmaip-v-results/1")  # the first had no reasons, raw scores and fingerprints
ROW_FIELDS = (
    "question_id",
    "video_id",
    "question_type",
    "question",
    "answers",
    "response",
    "correct",
    "score",
    "error",
)
SCORE = "score"  # the criterion that is reported as a mean
MORE_FIELDS = ("reason", "scores", "probability", "caption")  # None in a row that lacks them


@dataclass
class Results:
    """One model's answers to one benchmark, judged.

    Attributes:
        name: what the run is called in tables, such as the arm.
        model: checkpoint folder or Hub id.
        model_revision: hash of the weights and configuration, or the Hub commit.
        dataset: where the benchmark came from.
        dataset_fingerprint: hash of the questions asked and their references.
        judge: which judge, see `eval.fingerprint.judge_record`.
        decoding: how answers were decoded.
        self_judged: name of a judge that chose the model's training pairs and shares the evaluator's model; None if
            there is none, or nobody said what the model was trained on. Such a figure is never a headline.
        rows: one dict per question with the keys of ``ROW_FIELDS`` and ``MORE_FIELDS``; ``correct`` is 0, 1 or None (no
            verdict, see ``error``), ``score`` is the judge's aggregate in 0–1 or None, ``scores`` its raw values by
            criterion, ``probability`` that of a right answer where the judge gives one.
    """

    name: str
    model: str
    model_revision: str
    dataset: str = ""
    dataset_fingerprint: str = ""
    judge: dict = field(default_factory=dict)
    decoding: dict = field(default_factory=dict)
    self_judged: str | None = None
    rows: list[dict] = field(default_factory=list)

    @property
    def judged(self) -> list[dict]:
        """The rows that have a verdict."""
        return [row for row in self.rows if row["correct"] is not None]

    @property
    def errors(self) -> int:
        """How many rows have no verdict; they are left out of the accuracy, never counted as wrong or right."""
        return len(self.rows) - len(self.judged)

    @property
    def accuracy(self) -> Estimate:
        """Share of right answers with an interval clustered by video.

        Raises:
            KitError: if no row has a verdict.
        """
        return self._accuracy_of(self.judged)

    def accuracy_by_type(self) -> dict[str, Estimate]:
        """Accuracy for each question type that has a verdict, in alphabetical order."""
        judged = self.judged
        kinds = sorted({row["question_type"] or "" for row in judged})
        return {kind: self._accuracy_of([r for r in judged if (r["question_type"] or "") == kind]) for kind in kinds}

    def _accuracy_of(self, rows: list[dict]) -> Estimate:
        if not rows:
            first = next((row["error"] for row in self.rows if row.get("error")), "there are no rows")
            raise KitError(f"results '{self.name}' hold no verdict: {first}")
        return cluster_mean([row["correct"] for row in rows], [row["video_id"] for row in rows])

    def mean_score(self) -> Estimate | None:
        """Mean of the judge's criterion ``score`` on its own scale, such as 0–5; None if it gives no such scores."""
        rows = [row for row in self.judged if (row["scores"] or {}).get(SCORE) is not None]
        if not rows:
            return None
        bounds = (self.judge.get("criteria") or {}).get(SCORE)
        return cluster_mean([row["scores"][SCORE] for row in rows], [row["video_id"] for row in rows], bounds)

    def failures(self) -> dict[str, int]:
        """How often each reason for having no verdict occurs, most frequent first."""
        counts = Counter(row["error"] or "no reason given" for row in self.rows if row["correct"] is None)
        return dict(counts.most_common())

    def summary(self) -> dict:
        """What a table shows of this run, without the rows."""
        head = {key: value for key, value in asdict(self).items() if key != "rows"}
        by_type = {kind: estimate.as_dict() for kind, estimate in self.accuracy_by_type().items()}
        return {**head, "accuracy": self.accuracy.as_dict(), "by_type": by_type, "errors": self.errors}

    def save(self, path: str | Path) -> Path:
        """Write the results as JSON; a reader never sees half a file. The same results give the same bytes."""
        content = {"format": FORMAT, **asdict(self)}
        if self.judged:
            content["accuracy"] = self.accuracy.as_dict()
        return write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Results:
        """Read what :meth:`save` wrote.

        Raises:
            KitError: if the file is missing, is not JSON, or is something else.
        """
        return cls.from_dict(read_json(path), path)

    @classmethod
    def from_dict(cls, content: object, path: str | Path) -> Results:
        """Results from parsed JSON; ``path`` is for the message.

        Raises:
            KitError: if a row lacks a field, or the content is something else.
        """
        if not isinstance(content, dict) or content.get("format") not in READABLE:
            raise KitError(f"{path}: these are not results of this kit (expected format '{FORMAT}')")
        known = {key: content[key] for key in cls.__dataclass_fields__ if key in content}
        try:
            results = cls(**known)
        except TypeError as error:
            raise KitError(f"{path}: {error}") from None
        for number, row in enumerate(results.rows, 1):
            missing = [key for key in ROW_FIELDS if key not in row]
            if missing:
                raise KitError(f"{path}: row {number}: field '{missing[0]}' is missing")
            for key in MORE_FIELDS:
                row.setdefault(key, None)
        return results


def refuse_different_judges(results: Sequence[Results]) -> None:
    """Verdicts of different judges, or of one under different settings, are no measurements of the same thing.

    Raises:
        KitError: naming the two that differ and what to do.
    """
    for other in results[1:]:
        if not same_judge(results[0].judge, other.judge):
            raise KitError(
                f"'{results[0].name}' was judged by {describe_judge(results[0].judge)}, '{other.name}' by "
                f"{describe_judge(other.judge)}: judge one of them again (python -m eval rejudge), or say "
                "--different-judges to compare all the same"
            )


def compare(a: Results, b: Results, draws: int = 100_000, seed: int = 0, different_judges: bool = False) -> Paired:
    """Paired test of ``a`` against ``b`` over the questions that both have a verdict for, clustered by video.

    Rows are matched by question id, so their order does not matter. Rows that one side lacks are counted in
    ``left_out``.

    Args:
        a: the one that a positive difference favours.
        b: its comparator, on the same questions.
        draws: random sign assignments.
        seed: of the draws.
        different_judges: compare although their judges differ.

    Raises:
        KitError: if the two share no judged question, one question id stands for different questions, or their judges
            differ.
    """
    if not different_judges:
        refuse_different_judges([a, b])
    judged = common_rows([a, b])
    if not judged:
        raise KitError(f"'{a.name}' and '{b.name}' share no question with a verdict on both sides")
    paired = paired_test(
        [rows[0]["correct"] for rows in judged],
        [rows[1]["correct"] for rows in judged],
        [rows[0]["video_id"] for rows in judged],
        draws=draws,
        seed=seed,
    )
    left_out = len({row["question_id"] for side in (a, b) for row in side.rows}) - len(judged)
    return Paired(**{**asdict(paired), "left_out": left_out})


def common_rows(results: Sequence[Results]) -> list[tuple[dict, ...]]:
    """The rows of several results on the same questions, side by side: those that all have a verdict for.

    Returns:
        One tuple a question, ordered by question id, with a row of each result.

    Raises:
        KitError: if one question id stands for different questions, or occurs twice on one side.
    """
    sides = [_by_id(side) for side in results]
    found = []
    for question_id in sorted(sides[0]):
        rows = tuple(side[question_id] for side in sides if question_id in side)
        for row in rows[1:]:
            for key in ("video_id", "question", "answers"):
                if row[key] != rows[0][key]:
                    other = next(r.name for r, side in zip(results, sides) if side.get(question_id) is row)
                    raise KitError(
                        f"'{results[0].name}' and '{other}' disagree about field '{key}' of question {question_id}: "
                        "they were not measured on the same benchmark"
                    )
        if len(rows) == len(results) and all(row["correct"] is not None for row in rows):
            found.append(rows)
    return found


def benchmark_fingerprint(rows: Iterable[tuple[str, str, str, Iterable[str]]]) -> str:
    """16 hex digits over (question_id, video_id, question, answers), whatever the order of the rows."""
    lines = sorted(json.dumps([q, v, text, list(answers)], ensure_ascii=False) for q, v, text, answers in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def read_json(path: str | Path) -> object:
    """Parse a JSON file.

    Raises:
        KitError: if it is missing or broken, naming the line.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise KitError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise KitError(f"{path}: cannot be read as text ({error})") from None
    except json.JSONDecodeError as error:
        raise KitError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from None


def write_text(path: str | Path, text: str) -> Path:
    """Write a file through a temporary neighbour, so that it is complete or not there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
    return path


def _by_id(results: Results) -> dict[str, dict]:
    rows = {row["question_id"]: row for row in results.rows}
    if len(rows) != len(results.rows):
        raise KitError(f"results '{results.name}' hold a question id twice; a paired test needs each once")
    return rows
