"""Probes of what the video does to a verdict, and of what should do nothing: asking again, or in another order."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from eval.audit.asking import AGAIN, BLANK, BLIND, OTHER, OWN, SHUFFLED, Ask, fewer
from eval.audit.cases import Case
from eval.audit.findings import FIGURE, RATE, Measure
from eval.audit.probes import accuracy, answers_of
from eval.audit.sheet import Setup, Sheet, difference, mean_of_answers

READS_ONLY = "the judge does not look at the video"


class FrameCount:
    """How accurate the judge is with fewer frames."""

    name, title = "frames", "Number of frames"

    def problem(self, setup: Setup) -> str | None:
        """The judge must look at several frames."""
        if not setup.needs_frames:
            return READS_ONLY
        return None if setup.num_frames > 1 else "the judge looks at one frame"

    @staticmethod
    def counts(num_frames: int) -> list[int]:
        """1, 2 and half of the frames, as far as these are fewer."""
        return sorted({count for count in (1, 2, num_frames // 2) if 0 < count < num_frames})

    def asks(self, setup: Setup) -> Iterator[Ask]:
        """Every answer with fewer frames, and with all."""
        for number, case in enumerate(setup.cases):
            for text in answers_of(case):
                yield Ask(number, text)
                for count in self.counts(setup.num_frames):
                    yield Ask(number, text, fewer(count))

    def measures(self, sheet: Sheet) -> Iterator[Measure]:
        """Balanced accuracy by number of frames, and what all add to one."""
        most = sheet.setup.num_frames
        for count in [*self.counts(most), most]:
            view = OWN if count == most else fewer(count)
            frames = f"{count} frame{'s' if count > 1 else ''}"
            found = sheet.gather(partial(accuracy, sheet, view=view))
            yield Measure(f"accuracy_{count}", f"balanced accuracy with {frames}", FIGURE, found)

        def gained(number: int, case: Case) -> float | None:
            return difference(accuracy(sheet, number, case), accuracy(sheet, number, case, view=fewer(1)))

        yield Measure("gain", f"what {most} frames add to 1", FIGURE, sheet.gather(gained), (-1.0, 1.0))


class OtherVideo:
    """How often a verdict on a right answer stays the same when another video is shown, for which it is wrong."""

    name, title = "other_video", "Another video"

    def problem(self, setup: Setup) -> str | None:
        """The judge must look, and there must be other videos."""
        if not setup.needs_frames:
            return READS_ONLY
        return None if any(case.other_id for case in setup.cases) else "the set holds no other video to show"

    def asks(self, setup: Setup) -> Iterator[Ask]:
        """Every right answer with its own and with another video."""
        for number, case in enumerate(setup.cases):
            for text in case.right if case.other_id else ():
                yield Ask(number, text)
                yield Ask(number, text, OTHER)

    def measures(self, sheet: Sheet) -> Iterator[Measure]:
        """Share of verdicts that stay, and by how much the accept rate falls."""

        def same(number: int, text: str) -> float | None:
            own, other = sheet.accept(Ask(number, text)), sheet.accept(Ask(number, text, OTHER))
            return None if own is None or other is None else float(own == other)

        def lost(number: int, text: str) -> float | None:
            return difference(sheet.accept(Ask(number, text)), sheet.accept(Ask(number, text, OTHER)))

        for name, label, value, bounds in (
            ("same", "verdict on a right answer stays when another video is shown", same, (0.0, 1.0)),
            ("effect", "right answers accepted: own video against another", lost, (-1.0, 1.0)),
        ):
            found = sheet.gather(
                lambda number, case, value=value: mean_of_answers(case.right, partial(value, number)),
                lambda case: case.other_id is not None,
            )
            yield Measure(name, label, FIGURE, found, bounds)


class Unseen:
    """How much the judge can tell without the video: it is shown black frames, or asked without any."""

    def __init__(self, name: str, title: str, label: str, **asked: str):
        self.name, self.title, self.label, self.asked = name, title, label, asked

    def problem(self, setup: Setup) -> str | None:
        """The judge must look otherwise, and there must be a version of it without frames."""
        if not setup.needs_frames:
            return READS_ONLY
        if self.asked.get("round") == BLIND and not setup.blind:
            return "this kind of judge cannot be asked without frames (kinds 'vqa' and 'visual' can)"
        return None

    def asks(self, setup: Setup) -> Iterator[Ask]:
        """Every answer with and without the video."""
        for number, case in enumerate(setup.cases):
            for text in answers_of(case):
                yield Ask(number, text)
                yield Ask(number, text, **self.asked)

    def measures(self, sheet: Sheet) -> Iterator[Measure]:
        """Balanced accuracy without the video (0.5 is guessing), and what looking adds."""

        def gained(number: int, case: Case) -> float | None:
            return difference(accuracy(sheet, number, case), accuracy(sheet, number, case, **self.asked))

        found = sheet.gather(partial(accuracy, sheet, **self.asked))
        yield Measure("accuracy", f"balanced accuracy with {self.label}", FIGURE, found)
        yield Measure("effect", f"what looking adds to {self.label}", FIGURE, sheet.gather(gained), (-1.0, 1.0))


class Repeated:
    """How often a verdict changes although nothing did: asked a second time, or among other neighbours."""

    def __init__(self, name: str, title: str, label: str, round: str):
        self.name, self.title, self.label, self.round = name, title, label, round

    def problem(self, setup: Setup) -> str | None:
        """An endpoint gets one answer at a time and knows no batches; its replies must not come from a cache."""
        if self.round == AGAIN and not setup.asked_anew:
            return "a second asking would be answered from the cache of calls"
        if self.round == SHUFFLED and setup.is_endpoint:
            return "every answer is a call of its own: there are no batches; see test-retest"
        return None

    def asks(self, setup: Setup) -> Iterator[Ask]:
        """Every answer twice."""
        for number, case in enumerate(setup.cases):
            for text in answers_of(case):
                yield Ask(number, text)
                yield Ask(number, text, round=self.round)

    def measures(self, sheet: Sheet) -> Iterator[Measure]:
        """Share of changed verdicts, and mean change of the score."""

        def changed(number: int, text: str) -> float | None:
            return _apart(sheet.accept(Ask(number, text)), sheet.accept(Ask(number, text, round=self.round)))

        def moved(number: int, text: str) -> float | None:
            return _apart(sheet.score(Ask(number, text)), sheet.score(Ask(number, text, round=self.round)))

        for name, label, value in (
            ("changed", f"verdict changes when {self.label}", changed),
            ("moved", f"score moves when {self.label}", moved),
        ):
            found = sheet.gather(lambda n, case, value=value: mean_of_answers(answers_of(case), partial(value, n)))
            yield Measure(name, label, RATE, found)


def _apart(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else abs(a - b)


BLACK = Unseen("blank", "Black frames", "black frames", view=BLANK)
NO_FRAMES = Unseen("no_frames", "No frames", "no frames", round=BLIND)
RETEST = Repeated("retest", "Test-retest", "asked again", AGAIN)
ORDER = Repeated("order", "Order and batch of items", "asked in another order and batch", SHUFFLED)
