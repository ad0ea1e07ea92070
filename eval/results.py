"""Saved results of one evaluation: a verdict per question, and the comparison of two of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dataset_builder.errors import KitError
from eval.stats import Estimate, Paired, cluster_mean, paired_test

FORMAT = "mmaip-v-results/1"
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


@dataclass
class Results:
    """One model's answers to one benchmark, judged.

    Attributes:
        name: what the run is called in tables, such as the arm.
        model: checkpoint folder or Hub id.
        model_revision: hash of the weights and configuration, or the Hub commit.
        dataset: where the benchmark came from.
        dataset_fingerprint: hash of the questions asked and their references.
        judge: name, revision, settings_hash of the judge.
        decoding: how answers were decoded.
        rows: one dict per question with the keys of ``ROW_FIELDS``; ``correct`` is 0, 1 or None (no verdict, see
            ``error``), ``score`` is the judge's aggregate in 0–1 or None.
    """

    name: str
    model: str
    model_revision: str
    dataset: str = ""
    dataset_fingerprint: str = ""
    judge: dict = field(default_factory=dict)
    decoding: dict = field(default_factory=dict)
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
        if not isinstance(content, dict) or content.get("format") != FORMAT:
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
        return results


def compare(a: Results, b: Results, draws: int = 100_000, seed: int = 0) -> Paired:
    """Paired test of ``a`` against ``b`` over the questions that both have a verdict for, clustered by video.

    Rows are matched by question id, so their order does not matter. Rows that one side lacks are counted in
    ``left_out``.

    Raises:
        KitError: if the two share no judged question, or one question id stands for different questions.
    """
    left, right = _by_id(a), _by_id(b)
    common = [question_id for question_id in sorted(left) if question_id in right]
    for question_id in common:
        for key in ("video_id", "question", "answers"):
            if left[question_id][key] != right[question_id][key]:
                raise KitError(
                    f"'{a.name}' and '{b.name}' disagree about field '{key}' of question {question_id}: "
                    "they were not measured on the same benchmark"
                )
    judged = [q for q in common if left[q]["correct"] is not None and right[q]["correct"] is not None]
    if not judged:
        raise KitError(f"'{a.name}' and '{b.name}' share no question with a verdict on both sides")
    paired = paired_test(
        [left[q]["correct"] for q in judged],
        [right[q]["correct"] for q in judged],
        [left[q]["video_id"] for q in judged],
        draws=draws,
        seed=seed,
    )
    left_out = len(left.keys() | right.keys()) - len(judged)
    return Paired(**{**asdict(paired), "left_out": left_out})


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
