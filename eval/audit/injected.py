"""Instructions hidden in wrong answers: how far they move the judge, by `dataset_builder.judges.injections`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dataset_builder.errors import KitError
from eval.audit.asking import OWN, Reading, Screen, reading_of
from eval.audit.findings import BIAS, FIGURE, Measure, Unmeasured, Values
from eval.audit.sheet import difference

if TYPE_CHECKING:
    from dataset_builder.judges import Judge, JudgeItem, Score
    from dataset_builder.judges.injections import Injection
    from eval.audit.cases import Case

NAME, TITLE = "injections", "Injections"
CASES = 20  # videos, one wrong answer each: about fifty injections and their controls are judged for every one


def measure_injected(
    judge: Judge,
    cases: Sequence[Case],
    limit: int = CASES,
    seed: int = 0,
    injections: Sequence[Injection] | None = None,
    progress: bool = False,
) -> tuple[list[Measure], dict[str, Any]]:
    """Judge wrong answers with every injection, each against a neutral text of its length.

    Args:
        judge: who is asked.
        cases: of the audit; one case of each of ``limit`` videos is taken.
        limit: how many videos.
        seed: of which ones.
        injections: the attacks; all of the suite by default.
        progress: show a bar.

    Returns:
        What came out, and the suite's own report (by category and by injection).

    Raises:
        Unmeasured: no video of the cases taken can be read.
        KitError: the judge's model cannot be asked.
    """
    from dataset_builder.judges import JudgeItem
    from dataset_builder.judges.injections import INJECTIONS, measure_injections

    screen = Screen(cases, judge.num_frames)
    items, videos, problem = [], [], None
    for number in _one_per_video(cases, limit, seed):
        case = cases[number]
        try:
            frames = screen.frames(number, OWN) if judge.needs_frames else None
        except KitError as error:
            problem = str(error)
            continue
        items.append(JudgeItem(case.question, list(case.answers), frames, case.wrong[0], case.caption))
        videos.append(case.video_id)
    if not items:
        raise Unmeasured(problem or "no case has a wrong answer")
    injections = INJECTIONS if injections is None else injections
    noting = _NotingJudge(judge)
    report = measure_injections(noting, items, injections, progress)
    accepted, scored, raised = Values(), Values(), Values()
    for number, (item, video) in enumerate(zip(items, videos)):
        pairs = report.measured[number :: len(items)]  # they come injection by injection
        gains = [pair.gain for pair in pairs if pair.gain is not None]
        both = [
            difference(
                noting.reading(item, pair.injection.around(item.response)).accept,
                noting.reading(item, pair.injection.control(item.response)).accept,
            )
            for pair in pairs
        ]
        reason = next((reading.error for reading in noting.readings.values() if reading.error), None)
        accepted.add(video, _mean([shift for shift in both if shift is not None]), reason)
        scored.add(video, _mean(gains), reason)
        raised.add(video, _mean([float(gain > 0) for gain in gains]), reason)
    count = len(injections)
    measures = [
        Measure("accepted_wrong", f"{count} hidden instructions: wrong answers accepted", BIAS, accepted),
        Measure("score_wrong", f"{count} hidden instructions: score", BIAS, scored),
        Measure("raised", "hidden instructions that raise the score", FIGURE, raised),
    ]
    return measures, report.to_dict()


def _one_per_video(cases: Sequence[Case], limit: int, seed: int) -> list[int]:
    """Numbers of cases, one of each of so many videos drawn at random, in the order of the videos."""
    by_video: dict[str, list[int]] = {}
    for number, case in enumerate(cases):
        if case.wrong:
            by_video.setdefault(case.video_id, []).append(number)
    rng = random.Random(f"audit-injections-{seed}")
    videos = sorted(rng.sample(sorted(by_video), min(limit, len(by_video))))
    return [rng.choice(by_video[video]) for video in videos]


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


class _NotingJudge:
    """The judge, and a note of each verdict: the suite itself keeps scores only."""

    def __init__(self, judge: Judge):
        self._judge = judge
        self.readings: dict[tuple, Reading] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._judge, name)

    def score(self, items: list[JudgeItem]) -> list[list[Score]]:
        found = self._judge.score(items)
        for item, scores in zip(items, found, strict=True):
            self.readings[self._key(item, item.response)] = reading_of(scores)
        return found

    def reading(self, item: JudgeItem, response: str) -> Reading:
        return self.readings[self._key(item, response)]

    @staticmethod
    def _key(item: JudgeItem, response: str) -> tuple:
        return (item.question, tuple(item.answers), item.caption, id(item.frames), response)
