"""What a model's card says of the judge that watches the video: from its verdicts, ``results/evaluator/*.json``.

Debiased figures are computed again from these verdicts and the labels in ``results/gold/*.jsonl``.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cards.text import NOT_MEASURED, count, interval, share
from cards.verify.checks import Checks
from cards.verify.page import Span, Table
from dataset_builder.errors import KitError

if TYPE_CHECKING:
    from cards.verify.model import Results

BLIND, WITHOUT_FRAMES = "blind", "without_frames"


class Judged:
    """Verdicts of the evaluator, and gold labels.

    Args:
        folder: of the repo.
    """

    def __init__(self, folder: Path):
        from cards.verify.model import Results

        self.folder = folder
        self.results = Results(folder / "results" / "evaluator")

    def mean(self, name: str):
        """What the verdicts of a file say, with an interval; None where the file is not released."""
        return self.results.accuracy(name)

    @cached_property
    def labels(self) -> dict[str, list]:
        """Gold labels by the file's name: ``simulated`` and ``labels`` (by people)."""
        from eval.gold.rows import read_gold

        return {path.stem: read_gold(path) for path in sorted((self.folder / "results" / "gold").glob("*.jsonl"))}

    def debiased(self, arm: str, kind: str):
        """An arm's figure put right with the labels of a kind, an `eval.stats.Debiased`; None where it cannot be."""
        from eval.gold.matching import gold_for
        from eval.results import Results as Saved
        from eval.stats import debiased_mean

        path = self.folder / "results" / "evaluator" / f"{arm}.json"
        if not path.is_file() or kind not in self.labels:
            return None
        results = Saved.load(path)
        try:
            gold = gold_for(results, self.labels[kind])
            verdicts = [None if row["correct"] is None else float(row["correct"]) for row in results.rows]
            return debiased_mean(verdicts, [row["video_id"] for row in results.rows], gold)
        except (KitError, ValueError):  # too few labels by now, or none of them on these answers
            return None


def check_judged(checks: Checks, truth: Results, folder: Path, arm: str) -> None:
    """Check the headline's table and the sections of the judge that watches and of the labels by people.

    Args:
        checks: of the card.
        truth: the results of the arms, by the judge of the test.
        folder: of the repo.
        arm: the released one.
    """
    judged = Judged(folder)
    _headline(checks, truth, judged, arm)
    _watching(checks, truth, judged)
    _people(checks, judged)
    page = checks.page
    for pattern, name, what in (
        (r"Shown no frames, the judge says (\S+ %) of `[^`]+` \((.+?)\)\.", WITHOUT_FRAMES, "the judge without frames"),
        (r"Shown no video, `[^`]+` answers (\S+ %) right by the references \((.+?)\)\.", BLIND, "no video shown"),
    ):
        if found := page.find(pattern):
            _estimate(checks, what, page.group(found, 1), page.group(found, 2), judged.mean(name), f"{name}.json")


def _headline(checks: Checks, truth: Results, judged: Judged, arm: str) -> None:
    table = checks.page.table("on the test questions", "right answers")
    if table is None:
        return checks.absent("table of headline figures", "it is not there")
    for what, mean, ends, by in table.rows:
        found = {
            "the base": lambda: (truth.accuracy("base"), "results/base.json"),
            "this model, shown no video": lambda: (judged.mean(BLIND), f"results/evaluator/{BLIND}.json"),
        }.get(what.text)
        if found is None:
            found = next(
                (
                    make
                    for words, make in (
                        ("shown no frames", lambda: (judged.mean(WITHOUT_FRAMES), f"{WITHOUT_FRAMES}.json")),
                        ("simulated labels", lambda: (judged.debiased(arm, "simulated"), "results/gold")),
                        ("labels by people", lambda: (judged.debiased(arm, "labels"), "results/gold/labels.jsonl")),
                        ("the released judge", lambda: (judged.mean(arm), f"results/evaluator/{arm}.json")),
                        ("watches the video", lambda: (judged.mean(arm), f"results/evaluator/{arm}.json")),
                    )
                    if words in by.text
                ),
                lambda: (truth.accuracy(arm), f"results/{arm}.json"),
            )
        value, file = found()
        _estimate(checks, f"headline: {what.text}, {by.text}", mean, ends, value, file)


def _watching(checks: Checks, truth: Results, judged: Judged) -> None:
    """The table of the arms by the judge that watches."""
    table = checks.page.table("arm", "its verdicts say")
    for cells in table.rows if table else []:
        checks.page.claim(cells[0])
        name = cells[0].text.strip("*")
        _row(checks, table, cells, name, truth, judged)
    if table and table.column("debiased with") is not None:
        head = table.head[table.column("debiased with")]
        videos = {label.video_id for label in judged.labels.get("simulated", [])}
        text = f"debiased with {len(videos)} gold videos"
        if videos:
            checks.text("gold videos", head, text)
        else:
            checks.unchecked("gold videos", head, "results/gold/simulated.jsonl is not released")


def _row(checks: Checks, table: Table, cells: list[Span], name: str, truth: Results, judged: Judged) -> None:
    own = judged.mean(name)
    if own is None:
        for head, cell in zip(table.head[1:], cells[1:]):
            why = f"results/evaluator/{name}.json is not released"
            checks.unchecked(f"{head.text}, {name}, by the evaluator", cell, why)
        return
    rows = judged.results.judged(name)
    known = truth.rows.get(name, {})
    sides = [(row["correct"], known.get(row["question_id"], {}).get("correct")) for row in rows]
    sides = [side for side in sides if side[1] is not None]
    for head, cell in zip(table.head[1:], cells[1:]):
        what = f"{head.text}, {name}, by the evaluator"
        if head.text == "its verdicts say":
            checks.number(what, cell, own.mean, share)
        elif head.text == "95 % interval":
            checks.text(what, cell, interval([own.low, own.high]))
        elif head.text == "no verdict":
            checks.number(what, cell, len(judged.results.rows[name]) - len(rows), count)
        elif head.text.startswith("debiased"):
            found = judged.debiased(name, "simulated")
            if found is None and cell.text != NOT_MEASURED:
                checks.unchecked(what, cell, "there are no labels in results/gold/simulated.jsonl for it")
            else:
                text = f"{share(found.mean)} ({interval([found.low, found.high])})" if found else NOT_MEASURED
                checks.text(what, cell, text)
        else:
            of = {"right answers missed": 1, "wrong answers passed": 0}.get(head.text)
            counted = [said != true for said, true in sides if of is None or true == of]
            checks.number(what, cell, sum(counted) / len(counted) if counted else None, share)


def _people(checks: Checks, judged: Judged) -> None:
    """The table of figures put right with labels by people."""
    page = checks.page
    labels = judged.labels.get("labels", [])
    pattern = r"The answers about (\S+) videos, drawn at random, were labelled by hand \((\S+) labels"
    if found := page.find(pattern):
        checks.number("videos labelled by hand", page.group(found), len({each.video_id for each in labels}), count)
        checks.number("labels by hand", page.group(found, 2), len(labels), count)
    table = page.table("arm", "verdicts alone", "labels alone")
    for name, naive, alone, alone_ends, mean, ends in table.rows if table else []:
        page.claim(name)
        arm = name.text.strip("*")
        found: Any = judged.debiased(arm, "labels")
        parts = (None, None, None) if found is None else (found.naive, found.gold_only, found)
        checks.number(f"verdicts alone, {arm}, by people", naive, parts[0] and parts[0].mean, share)
        file = "results/gold/labels.jsonl"
        _estimate(checks, f"labels alone, {arm}", alone, alone_ends, parts[1], file)
        _estimate(checks, f"debiased by people, {arm}", mean, ends, parts[2], file)


def _estimate(checks: Checks, name: str, mean: Span, ends: Span, found: Any, file: str) -> None:
    """A mean and its interval; where there are no rows, the card may say nothing but "not measured"."""
    if found is None and mean.text == NOT_MEASURED and ends.text == NOT_MEASURED:
        return
    if found is None:
        for part, span in (("", mean), (", interval", ends)):
            checks.unchecked(name + part, span, f"{file} is not released")
        return
    checks.number(name, mean, found.mean, share)
    checks.text(f"{name}, interval", ends, interval([found.low, found.high]))
