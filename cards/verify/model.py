"""The card of a model repo against the row-level results that lie in it (``results/ARM.json``).

What training logged (steps, learning rates, alphas, distances, validation) has no rows: it is named as not checkable.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from cards.stage_log import read_json
from cards.text import count, interval, p_value, points, share
from cards.verify.checks import Check, Checks
from cards.verify.page import Page, Span, Table
from dataset_builder.errors import KitError

DRAWS = 100_000
_WORDING = (r"95 % interval", r"\(α is 0\)", r"contains 0\b", r"few and 0 are", r"alpha 0 in", r"alpha 0,")
_TRAINING = "logged while training; no row of the release holds it"
_PIECES = {  # tables of what was logged, by their first heads
    ("round", "steps"): "rounds",
    ("round", "rank"): "adapters",
    ("module", "weights"): "how far modules moved",
    ("arm", "steps"): "what each arm took",
}


def verify_model(folder: Path, dataset: Path | None = None) -> list[Check]:
    """Check every number of a model's card.

    Args:
        folder: with the card and ``results/``.
        dataset: the dataset's folder, to check what the card says of it too.

    Raises:
        KitError: there is no card, or there are no results.
    """
    page = Page.read(folder / "README.md")
    results = Results(folder / "results")
    checks = Checks(page)
    page.constants(*_WORDING)
    arm = found[1] if (found := page.find(r"arm `([^`]+)` \(")) else None
    if arm is None or arm not in results.rows:
        raise KitError(
            f"{folder}: has no results/{arm or 'ARM'}.json, and the card's figures cannot be computed without"
        )
    try:
        _front(checks, results, arm, folder)
        _sentences(checks, results, arm)
        _data(checks, results, arm, dataset)
        _arms(checks, results, read_json(folder / "arms.json", {}).get("seed") or 0)  # a setting
        _types(checks, results, arm)
        _evaluator(checks, folder)
        _logged(checks)
    except (KeyError, TypeError, IndexError) as error:
        raise KitError(
            f"{folder}: its results are not as the kit writes them ({type(error).__name__}: {error})"
        ) from None
    return checks.finish()


class Results:
    """Rows of every arm: question, video, type, and whether the answer was right.

    Raises:
        KitError: a file cannot be read.
    """

    def __init__(self, folder: Path):
        self.rows: dict[str, dict[str, dict]] = {}
        for path in sorted(folder.glob("*.json")):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                self.rows[path.stem] = {row["question_id"]: row for row in content["rows"]}
            except (ValueError, KeyError, TypeError) as error:
                raise KitError(f"{path}: are no results with rows ({type(error).__name__}: {error})") from None

    def judged(self, arm: str) -> list[dict]:
        """The rows with a verdict."""
        return [row for row in self.rows[arm].values() if row.get("correct") is not None]

    def accuracy(self, arm: str):
        """Mean and interval, clustered by video; None without rows."""
        from eval.stats import cluster_mean

        rows = self.judged(arm) if arm in self.rows else []
        return cluster_mean([r["correct"] for r in rows], [r["video_id"] for r in rows]) if rows else None

    def tests(self, arms: list[str], other: str, draws: int, seed: int) -> dict[str, tuple[float, float]]:
        """Difference to another arm and p-value, corrected by Holm over all arms."""
        from eval.stats import holm, paired_test

        found = {}
        for arm in arms:
            common = sorted(
                key
                for key in self.rows[arm].keys() & self.rows[other].keys()
                if None not in (self.rows[arm][key].get("correct"), self.rows[other][key].get("correct"))
            )
            sides = [[self.rows[name][key]["correct"] for key in common] for name in (arm, other)]
            found[arm] = paired_test(*sides, [self.rows[arm][key]["video_id"] for key in common], draws, seed)
        corrected = holm([test.p for test in found.values()])
        return {arm: (test.difference, p) for (arm, test), p in zip(found.items(), corrected)}


def _front(checks: Checks, results: Results, arm: str, folder: Path) -> None:
    mean = round(results.accuracy(arm).mean, 4)
    for path in sorted((folder / ".eval_results").glob("*.yaml")):
        for entry in yaml.safe_load(path.read_text(encoding="utf-8")) or []:
            checks.value(f"{path.name}: value", entry.get("value"), mean)
    for model in checks.page.front.get("model-index") or []:
        for result in model.get("results") or []:
            for metric in result.get("metrics") or []:
                if metric.get("type") == "accuracy":
                    checks.value("model-index: accuracy", metric.get("value"), mean)


def _sentences(checks: Checks, results: Results, arm: str) -> None:
    page, own, base = checks.page, results.accuracy(arm), results.accuracy("base")
    if found := page.find(r"It answers (.+?) of the test questions right \(95 % interval (.+?), clustered"):
        checks.number(f"accuracy of {arm}", page.group(found), own.mean, share)
        checks.text(f"interval of {arm}", page.group(found, 2), interval([own.low, own.high]))
    if base and (found := page.find(r"the base answers (.+?)\.$")):
        checks.number("accuracy of base", page.group(found), base.mean, share)
    if found := page.find(r"on test (\d+) arms are higher"):
        better = sum(results.accuracy(name).mean > own.mean for name in results.rows)
        checks.number("arms that are higher on test", page.group(found), better, count)
    if found := page.find(r"on test (`[^`]+`(?:, `[^`]+`)*) (?:is|are) higher"):
        named = set(re.findall(r"`([^`]+)`", found[1]))
        better = {name for name in results.rows if results.accuracy(name).mean > own.mean}
        checks.value("arms that are higher on test", sorted(named), sorted(better))


def _data(checks: Checks, results: Results, arm: str, dataset: Path | None) -> None:
    page = checks.page
    found = page.find(r"([\d,]+) pairs over ([\d,]+) questions, selected from ([\d,]+) answers")
    if found is not None:
        counts = {}
        if dataset is not None:
            from cards.verify.rows import Rows

            counts = Rows(dataset).counts
        for place, name in enumerate(("pairs", "questions", "answers"), 1):
            if counts:
                checks.number(f"{name} of the dataset", page.group(found, place), counts[name], count)
            else:
                why = "its rows are in the dataset's repo: add --dataset NS/NAME"
                checks.unchecked(f"{name} of the dataset", page.group(found, place), why)
    rows = results.rows[arm].values()
    if found := page.find(r"Tested on (\S+) clips"):
        checks.number("test clips", page.group(found), len({row["video_id"] for row in rows}), count)
    if found := page.find(r"clips with (\S+) questions that no arm"):
        checks.number("test questions", page.group(found), len(rows), count)
    if found := page.find(r"Accuracy of the base before the bias: (.+?)\.$"):
        checks.unchecked("accuracy of the base before the bias", page.group(found), "of a model that is not released")


def _arms(checks: Checks, results: Results, seed: int) -> None:
    page = checks.page
    table = page.table("arm", "what it is", "accuracy")
    if table is None:
        return checks.absent("table of all arms", "it is not there")
    names = [row[0].text.strip("*") for row in table.rows]
    checks.value("arms with results", sorted(names), sorted(results.rows))
    drawn = page.find(r"per video \(([\d,]+) draws\)")
    draws = int(drawn[1].replace(",", "")) if drawn else DRAWS
    if drawn:
        checks.unchecked("draws of the paired tests", page.group(drawn), "a setting; the tests were made again with it")
    others = [head.text.removeprefix("p vs ") for head in table.head if head.text.startswith("p vs ")]
    known = [name for name in names if name in results.rows]
    tests = {o: results.tests([n for n in known if n != o], o, draws, seed) for o in others if o in known}
    for name, row in zip(names, table.rows):
        page.claim(row[0], row[1])
        own = results.accuracy(name)
        checks.number(f"accuracy, {name}", row[2], own and own.mean, share)
        checks.text(f"interval, {name}", row[3], interval(own and [own.low, own.high]))
        for other in others:
            difference, p = row[table.column(f"− {other}")], row[table.column(f"p vs {other}")]
            if name == other:
                checks.text(f"difference of {name} to itself", difference, "–")
                checks.text(f"p of {name} against itself", p, "–")
                continue
            test = tests.get(other, {}).get(name, (None, None))
            checks.number(f"{name} − {other}", difference, test[0], points)
            # another order of rows draws other signs: four standard errors of the draws, times Holm's factor
            spread = 0 if test[1] is None else 4 * (test[1] * max(1 - test[1], 0) / draws) ** 0.5 * len(known) + 1e-9
            checks.text(f"p of {name} against {other}", p, *_near(p.text, test[1], spread))


def _near(shown: str, value: float | None, spread: float) -> list[str]:
    """How a p-value reads, and as it is shown where that is within the spread of drawing."""
    found = [p_value(value)]
    number = re.fullmatch(r"(?:< )?([\d.]+)", shown)
    if value is not None and number and abs(float(number[1]) - value) <= spread and "<" not in shown:
        found.append(shown)
    return found


def _types(checks: Checks, results: Results, arm: str) -> None:
    table = checks.page.table("question type", "base")
    if table is None:
        return
    for kind, *cells in table.rows:
        checks.page.claim(kind)
        for name, cell in zip(("base", arm), cells):
            own = [row["correct"] for row in results.judged(name) if (row.get("question_type") or "all") == kind.text]
            checks.number(f"accuracy on {kind.text}, {name}", cell, sum(own) / len(own) if own else None, share)


def _evaluator(checks: Checks, folder: Path) -> None:
    """The section of the judge that watches: from its verdicts, ``results/evaluator/ARM.json``."""
    page, results = checks.page, Results(folder / "results" / "evaluator")
    table = page.table("arm", "its verdicts say")
    if table is not None:
        truth = Results(folder / "results")
        for first, *cells in table.rows:
            page.claim(first)
            _judged(checks, results, truth, first.text.strip("*"), dict(zip([h.text for h in table.head[1:]], cells)))
    for pattern, name in (
        (r"Shown no frames, the judge says (.+?) of", "the judge without frames"),
        (r"Shown no video, `[^`]+` answers (.+?) right", "the model without video"),
    ):
        if found := page.find(pattern):
            checks.unchecked(name, page.group(found), "these verdicts are not released row by row")
    if found := page.find(r"debiased with (\d+) gold videos"):
        checks.unchecked("gold videos", page.group(found), "a setting of the simulation")


def _judged(checks: Checks, results: Results, truth: Results, name: str, cells: dict[str, Span]) -> None:
    own = results.accuracy(name)
    for head, cell in cells.items():
        what = f"{head}, {name}, by the evaluator"
        if own is None:
            checks.unchecked(what, cell, f"results/evaluator/{name}.json is not released")
        elif head == "its verdicts say":
            checks.number(what, cell, own.mean, share)
        elif head == "95 % interval":
            checks.text(what, cell, interval([own.low, own.high]))
        elif head == "no verdict":
            checks.number(what, cell, len(results.rows[name]) - len(results.judged(name)), count)
        elif head.startswith("debiased"):
            checks.unchecked(what, cell, "the simulated gold labels are not released")
        else:
            sides = [(r["correct"], truth.rows.get(name, {}).get(r["question_id"], {}).get("correct")) for r in
                     results.judged(name)]  # fmt: skip
            sides = [side for side in sides if side[1] is not None]
            of = {"right answers missed": 1, "wrong answers passed": 0}.get(head)
            counted = [said != true for said, true in sides if of is None or true == of]
            checks.number(what, cell, sum(counted) / len(counted) if counted else None, share)


def _logged(checks: Checks) -> None:
    """Tables and words about training, which no released row can confirm."""
    for table in checks.page.tables:
        heads = tuple(head.text for head in table.head[:2])
        if heads in _PIECES:
            _table(checks, table, _PIECES[heads])
    if found := checks.page.find(r"<summary>(\d+) kinds of modules"):
        table = checks.page.table("module", "weights")
        kinds = sum(row[0].text != "all" for row in table.rows) if table else 0
        checks.number("kinds of modules, as listed below", checks.page.group(found), kinds, count)
    for pattern, name in (
        (r"optimizer steps \(([\d,]+)\)", "optimizer steps of an arm"),
        (r"\(weight ([\d.]+)\)", "weight of the SFT term"),
        (r"α (\S+) included", "alpha of the released round"),
        (r"has cosine (\S+) with", "cosine of the step that was saved"),
    ):
        if found := checks.page.find(pattern):
            checks.unchecked(name, checks.page.group(found), _TRAINING)


def _table(checks: Checks, table: Table, name: str) -> None:
    """Claim a whole table that was logged, column by column."""
    for row in table.rows:
        checks.page.claim(*row)
    for place, head in enumerate(table.head[1:], 1):
        cells = [row[place].text for row in table.rows if place < len(row)]
        if any(letter.isdigit() for cell in cells for letter in cell):
            checks.unchecked(f"{name}: {head.text}", f"{len(cells)} rows", _TRAINING)
