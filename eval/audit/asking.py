"""Asking the judge: every probe names what it wants judged, equal wishes are asked once, verdicts are kept on disk."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dataset_builder.errors import KitError
from dataset_builder.stages import ShardStore, fingerprint
from eval.verdicts import verdict

if TYPE_CHECKING:
    from dataset_builder.judges import Judge, JudgeItem, Score
    from dataset_builder.media import Frames
    from eval.audit.cases import Case

OWN, OTHER, BLANK = "own", "other", "blank"  # what is shown: the video, another one, black frames
FIRST, AGAIN, SHUFFLED, BLIND = "first", "again", "shuffled", "blind"  # who is asked, and in which order
STAGE = "audit"
BLOCK = 64  # answers that a local judge gets at once, and that are lost at most
SMALL_BLOCK = 23  # of the shuffled round: other neighbours, and other numbers of them


@dataclass(frozen=True)
class Ask:
    """One answer to be judged.

    Attributes:
        case: number of the case.
        response: the answer's text.
        view: ``own``, ``other``, ``blank``, or ``frames-N`` for so many frames of its own video.
        round: ``first``; ``again`` asks a second time, ``shuffled`` in other batches, ``blind`` a judge without frames.
    """

    case: int
    response: str
    view: str = OWN
    round: str = FIRST


@dataclass(frozen=True)
class Reading:
    """What a judge said: ``accept`` (1 right, 0 wrong) and ``score`` (0 to 1), or None with ``error``."""

    accept: float | None
    score: float | None
    error: str | None = None


def fewer(count: int) -> str:
    """The view of so many frames."""
    return f"frames-{count}"


def reading_of(scores: Sequence[Score]) -> Reading:
    """A judge's scores of one answer as a verdict."""
    found = verdict(scores)
    return Reading(found["correct"], found["score"], found["error"])


class KeptJudge:
    """A judge whose scores are kept in a work folder: what was asked before is not asked again, also after a stop.

    It can stand wherever the judge could. A call with a failure in it is not kept, so that it is asked again next time.

    Args:
        judge: who is asked.
        store: where scores are kept; None keeps none (an endpoint's replies have a cache of their own).
        stage: kept apart from other stages.
    """

    def __init__(self, judge: Judge, store: ShardStore | None, stage: str = STAGE):
        self._judge, self._store, self._stage = judge, store, stage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._judge, name)

    def score(self, items: list[JudgeItem]) -> list[list[Score]]:
        """See `dataset_builder.judges.Judge`."""
        from dataset_builder.judges import Score

        if self._store is None:
            return self._judge.score(items)
        judge = self._judge
        shown = [
            [item.question, item.answers, item.caption, item.response, item.frames and item.frames.digest]
            for item in items
        ]
        asked = [judge.kind, judge.model_name, judge.revision, judge.settings_hash]
        key = fingerprint({"judge": asked, "items": shown})
        kept = self._store.read(self._stage, judge.name, 0, key)
        if kept is not None:
            return [[Score(**score) for score in row["scores"]] for row in kept]
        scores = judge.score(items)
        if all(score.error is None for row in scores for score in row):
            rows = [{"scores": [vars(score) for score in row]} for row in scores]
            self._store.write(self._stage, judge.name, 0, key, rows)
        return scores


class Screen:
    """The frames that a judge is shown of each case's video; those of one video at a time are kept.

    Args:
        cases: of the audit.
        num_frames: that the judge looks at.
    """

    def __init__(self, cases: Sequence[Case], num_frames: int):
        from eval.runner import FramesCache

        self.cases, self.num_frames = cases, num_frames
        self._decoded, self._video, self._views = FramesCache(), None, {}

    def frames(self, case: int, view: str) -> Frames:
        """What is shown.

        Raises:
            KitError: the video is missing or cannot be decoded.
        """
        import numpy as np

        identity, video = self.video(case, view)
        if identity != self._video:
            self._video, self._views = identity, {}
        if view not in self._views:
            frames = self._sampled(video)
            if view == BLANK:
                frames = replace(frames, array=np.zeros_like(frames.array))
            elif view not in (OWN, OTHER):
                frames = _shorter(frames, int(view.removeprefix("frames-")))
            self._views[view] = frames
        return self._views[view]

    def video(self, case: int, view: str) -> tuple[str, Any]:
        """Id and source of the video behind a view."""
        found = self.cases[case]
        return (found.other_id or "", found.other) if view == OTHER else (found.video_id, found.video)

    def _sampled(self, video: Any) -> Frames:
        from dataset_builder.media import Frames
        from eval.runner import frames_of

        if isinstance(video, Frames):
            return video if len(video) <= self.num_frames else video.thin(self.num_frames)
        return frames_of(video, self.num_frames, self._decoded)


def _shorter(frames: Frames, count: int) -> Frames:
    """So many of the frames, as if the video had no others: a judge may insist on all that there are.

    A single one is shown twice, because some video models take frames in pairs only.
    """
    few = frames.thin(count)
    if len(few) == 1:
        few = replace(few, array=few.array.repeat(2, 0), timestamps=few.timestamps * 2, indices=few.indices * 2)
    return replace(few, total=len(few))


def ask_all(
    asks: Iterable[Ask],
    cases: Sequence[Case],
    judges: Mapping[str, Judge],
    seed: int = 0,
    on_block: Callable[[int, int], None] | None = None,
) -> dict[Ask, Reading]:
    """Ask for everything, each wish once.

    Args:
        asks: what is wanted, in any order, with repetitions.
        cases: of the audit.
        judges: who is asked, by round.
        seed: of the shuffled round's order.
        on_block: called with (done, total) after each block.

    Raises:
        KitError: a judge's model cannot be asked at all.
    """
    asks = sorted(set(asks), key=lambda ask: (ask.round, ask.case, ask.view, ask.response))
    alike: dict[tuple, list[Ask]] = {}  # wishes that look the same to the judge
    for ask in asks:
        case = cases[ask.case]
        shown = (case.other_id if ask.view == OTHER else case.video_id, ask.view)
        alike.setdefault((ask.round, case.question, case.answers, case.caption, ask.response, shown), []).append(ask)
    wanted = [found[0] for found in alike.values()]
    readings: dict[Ask, Reading] = {}
    for name, judge in judges.items():
        mine, screen = [ask for ask in wanted if ask.round == name], Screen(cases, judge.num_frames)
        if name == SHUFFLED:
            random.Random(f"audit-order-{seed}").shuffle(mine)
        else:  # all that is asked about one video side by side, so that it is decoded once
            mine.sort(key=lambda ask: screen.video(ask.case, ask.view)[0])
        size = _block_size(judge, name)
        for start in range(0, len(mine), size):
            block = mine[start : start + size]
            readings.update(zip(block, _judge_block(block, cases, judge, screen), strict=True))
            if on_block:
                on_block(len(readings), len(wanted))
    return {ask: readings[found[0]] for found in alike.values() for ask in found}


def _block_size(judge: Judge, name: str) -> int:
    if name == SHUFFLED:
        return SMALL_BLOCK
    return max(BLOCK, 4 * judge.model.config.concurrency) if getattr(judge, "is_endpoint", False) else BLOCK


def _judge_block(block: list[Ask], cases: Sequence[Case], judge: Judge, screen: Screen) -> list[Reading]:
    from dataset_builder.judges import JudgeItem

    found: list[Reading | None] = [None] * len(block)
    items, places = [], []
    for place, ask in enumerate(block):
        case, frames = cases[ask.case], None
        if judge.needs_frames:
            try:
                frames = screen.frames(ask.case, ask.view)
            except KitError as error:
                found[place] = Reading(None, None, str(error))
                continue
        items.append(JudgeItem(case.question, list(case.answers), frames, ask.response, case.caption))
        places.append(place)
    for place, scores in zip(places, judge.score(items) if items else [], strict=True):
        found[place] = reading_of(scores)
    return found
