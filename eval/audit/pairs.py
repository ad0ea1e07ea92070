"""The order of two answers: whether a pair judge prefers what it reads first, or last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dataset_builder.errors import KitError
from dataset_builder.stages import ShardStore, fingerprint
from eval.audit.asking import OWN, STAGE, Screen
from eval.audit.findings import BIAS, FIGURE, RATE, Measure, Values

if TYPE_CHECKING:
    from dataset_builder.judges import PairJudge, PairVerdict
    from eval.audit.cases import Case

NAME, TITLE = "pairs", "Order of two answers"
BLOCK = 32  # pairs
_CREDIT = {"first": 1.0, "tie": 0.5, "second": 0.0}


def measure_pairs(
    judge: PairJudge, cases: Sequence[Case], store: ShardStore | None = None, progress: bool = False
) -> list[Measure]:
    """Compare the first right with the first wrong answer of every case, in both orders.

    Args:
        judge: who compares.
        cases: of the audit.
        store: where verdicts of a local judge are kept; an endpoint's replies have a cache of their own.
        progress: show a bar.

    Raises:
        KitError: the judge's model cannot be asked.
    """
    from tqdm import tqdm

    screen, numbers = Screen(cases, judge.num_frames), [n for n, case in enumerate(cases) if case.wrong]
    flips, places, first, accuracy = Values(), Values(), Values(), Values()
    with tqdm(total=len(numbers), desc=f"audit: pairs by {judge.name}", unit="pair", disable=not progress) as bar:
        for start in range(0, len(numbers), BLOCK):
            block = numbers[start : start + BLOCK]
            for number, verdict in zip(block, _compare(block, cases, judge, screen, store), strict=True):
                video, readable = cases[number].video_id, verdict["winner"] is not None
                flips.add(video, float(verdict["flipped"]) if readable else None, verdict["error"])
                accuracy.add(video, _CREDIT[verdict["winner"]] if readable else None, verdict["error"])
                places.add(video, _lean(verdict["places"]) if readable else None, verdict["error"])
                if verdict["flipped"]:
                    first.add(video, float(_lean(verdict["places"]) > 0))
            bar.update(len(block))
    first.reason = "no verdict flipped with the order"
    return [
        Measure("flips", "verdict flips with the order of two answers", RATE, flips),
        Measure("position", "first place preferred to second", BIAS, places),
        Measure("first_among_flips", "first place among the flips", FIGURE, first),
        Measure("accuracy", "right answer better than wrong one (a flip counts half)", FIGURE, accuracy),
    ]


def _lean(places: Sequence[str]) -> float:
    """1 when the first place won in both orders, -1 when the second did, 0 when they are even."""
    return (list(places).count("A") - list(places).count("B")) / 2


def _compare(
    block: list[int], cases: Sequence[Case], judge: PairJudge, screen: Screen, store: ShardStore | None
) -> list[dict[str, Any]]:
    from dataset_builder.judges import JudgeItem

    rows: list[dict[str, Any] | None] = [None] * len(block)
    pairs, open_ = [], []
    for place, number in enumerate(block):
        case = cases[number]
        try:
            frames = screen.frames(number, OWN)
        except KitError as error:
            rows[place] = {"winner": None, "flipped": False, "error": str(error), "places": []}
            continue
        sides = (case.right[0], case.wrong[0])
        pairs.append(tuple(JudgeItem(case.question, list(case.answers), frames, text, case.caption) for text in sides))
        open_.append(place)
    key = None
    if store is not None:
        shown = [[a.question, a.answers, a.response, b.response, a.frames.digest] for a, b in pairs]
        key = fingerprint({"judge": [judge.model_name, judge.revision, judge.settings_hash], "pairs": shown})
    found = store.read(f"{STAGE}-pairs", judge.name, 0, key) if store is not None else None
    if found is None:
        found = [_row(verdict) for verdict in judge.compare_many(pairs)] if pairs else []
        if store is not None and all(row["error"] is None for row in found):
            store.write(f"{STAGE}-pairs", judge.name, 0, key, found)
    for place, row in zip(open_, found, strict=True):
        rows[place] = row
    return rows


def _row(verdict: PairVerdict) -> dict[str, Any]:
    return {
        "winner": verdict.winner,
        "flipped": verdict.flipped,
        "error": verdict.error,
        "places": list(verdict.places),
    }
