"""The card of a model repo against the row-level results that lie in it: ``results/ARM.json``, one row a question.

`evaluator_judged` knows the verdicts of the judge that watches and the gold labels; `model_logged` what training logged
(steps, learning rates, alphas, distances, validation), which has no rows and is named as not checkable.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from cards.stage_log import read_json
from cards.text import arm_words, count, interval, p_value, points, share, short
from cards.verify.checks import Check, Checks
from cards.verify.evaluator_judged import check_judged
from cards.verify.model_logged import check_logged, check_training
from cards.verify.page import Page
from dataset_builder.errors import KitError

DRAWS = 100_000
WORDING = (
    r"95 % interval",
    r"\(α is 0\)",
    r"contains 0[;.]",
    r"few and 0 are",
    r"alpha 0 in",
    r"alpha 0,",
    r"alphas judged by answers, besides 0",
)


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
    page.constants(*WORDING)
    arm = found[1] if (found := page.find(r"arm `([^`]+)` \(")) else None
    if arm is None or arm not in results.rows:
        raise KitError(
            f"{folder}: has no results/{arm or 'ARM'}.json, and the card's figures cannot be computed without"
        )
    _front(checks, results, arm, folder)
    _sentences(checks, results, arm)
    _data(checks, results, arm, dataset)
    _arms(checks, results, read_json(folder / "arms.json", {}))
    _types(checks, results, arm)
    _tested(checks, folder / "results" / f"{arm}.json")
    check_judged(checks, results, folder, arm)
    check_training(checks, folder, arm)
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
            common = sorted(  # as the test is made: for this order the seed draws the same signs again
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
    if base and (found := page.find(r"the base answers (\S+ %)\.$")):
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


def _arms(checks: Checks, results: Results, settings: dict) -> None:
    """The table of all arms; ``settings`` is what ``arms.json`` holds, of which draws and seed are used alone."""
    page, seed = checks.page, settings.get("seed") or 0
    table = page.table("arm", "what it is", "accuracy")
    if table is None:
        return checks.absent("table of all arms", "it is not there")
    names = [row[0].text.strip("*") for row in table.rows]
    checks.value("arms with results", sorted(names), sorted(results.rows))
    drawn = page.find(r"per video \(([\d,]+) draws\)")
    draws = settings.get("draws") or (int(drawn[1].replace(",", "")) if drawn else DRAWS)
    if drawn:
        why = "a setting; the tests were made again with it"
        check_logged(checks, "draws of the paired tests", page.group(drawn), count(draws), why)
    others = [head.text.removeprefix("p vs ") for head in table.head if head.text.startswith("p vs ")]
    known = [name for name in names if name in results.rows]
    tests = {o: results.tests([n for n in known if n != o], o, draws, seed) for o in others if o in known}
    for name, row in zip(names, table.rows):
        page.claim(row[0], row[1])
        if row[1].text != (words := arm_words(name, settings.get("arms")) or "–"):
            checks.text(f"what {name} is", row[1], words)
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
            checks.text(f"p of {name} against {other}", p, p_value(test[1]))


def _types(checks: Checks, results: Results, arm: str) -> None:
    table = checks.page.table("question type", "base")
    if table is None:
        return
    for kind, *cells in table.rows:
        checks.page.claim(kind)
        for name, cell in zip(("base", arm), cells):
            own = [row["correct"] for row in results.judged(name) if (row.get("question_type") or "all") == kind.text]
            checks.number(f"accuracy on {kind.text}, {name}", cell, sum(own) / len(own) if own else None, share)


def _tested(checks: Checks, file: Path) -> None:
    """Judge and decoding of the test answers, as the results say: settings, and hashes over them."""
    from dataset_builder.judges.base import settings_hash
    from eval.fingerprint import fingerprint_of

    page, content = checks.page, read_json(file, {})
    judge, decoding = content.get("judge") or {}, content.get("decoding") or {}
    if found := page.find(r"The test judge is `[^`]+` \(kind `[^`]+`, revision `[^`]+`, fingerprint (`[^`]+`)\)"):
        made = {**judge, "settings_hash": settings_hash(judge.get("settings") or {})}
        checks.text("fingerprint of the test judge", page.group(found), f"`{fingerprint_of(made)}`")
    pattern = r"decoded with (\S+) frames a video, temperature (\S+) and at most (\S+) tokens"
    if found := page.find(pattern):
        for place, key in enumerate(("num_frames", "temperature", "max_new_tokens"), 1):
            checks.text(f"decoding: {key}", page.group(found, place), short(decoding.get(key)))
    if found := page.find(r"It sees (\S+) frames of a video"):
        checks.text("decoding: num_frames", page.group(found), short(decoding.get("num_frames")))
