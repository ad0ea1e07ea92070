"""Judges whose bias is known, and a world whose truth they know: what an audit has to find out.

Every video's first pixel says which video it is, so that a judge that looks can tell videos apart, and one that is
shown another video, or black frames, is really misled. Every verdict is a pure function of what is shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from dataset_builder.judges import Criterion, JudgeItem, PairVerdict, error_scores, make_scores, settings_hash
from dataset_builder.judges.injections import INJECTIONS
from dataset_builder.media import Frames
from dataset_builder.text import words
from eval.audit import Case, Known
from eval.audit.cases import draw_wrong

FRAMES = 8
VOCABULARY = ("crimson", "teal", "ochre", "violet", "amber", "indigo")  # in no padding, style or injection
QUESTIONS = ("what colour is the hat ?", "what colour is the boat ?")
OWN_MARK = "it seems"  # how the planted family "kin" talks


def frames_of_video(number: int, count: int = FRAMES) -> Frames:
    """Frames that tell which video they are of; video 0 is black."""
    array = np.zeros((count, 4, 4, 3), dtype=np.uint8)
    array[:, 0, 0, 0], array[:, 0, 0, 1] = number // 256, number % 256
    seconds = [i / 4 for i in range(count)]
    return Frames(array, seconds, 4.0, list(range(count)), count, count / 4)


def planted_cases(videos: int = 60, seed: int = 0) -> list[Case]:
    """Two questions about each video; answers of two families, right and wrong."""
    cases = []
    for number in range(1, videos + 1):
        for place, question in enumerate(QUESTIONS):
            right = truth(number, question)
            wrong = VOCABULARY[(VOCABULARY.index(right) + 1 + (number + place) % (len(VOCABULARY) - 1)) % 6]
            said = [("kin", f"{OWN_MARK} {right}", True), ("kin", f"{OWN_MARK} {wrong}", False)]
            said += [("stranger", f"i see {right}", True), ("stranger", f"i see {wrong}", False)]
            cases.append(
                Case(
                    case_id=f"q{number:04d}-{place}",
                    video_id=f"v{number:04d}",
                    question=question,
                    answers=(right,),
                    right=(right,),
                    question_type="colour",
                    video=frames_of_video(number),
                    responses=tuple(Known(*one) for one in said),
                )
            )
    return draw_wrong(cases, seed)


def truth(number: int, question: str) -> str:
    """The right answer to a question about a video."""
    return VOCABULARY[int(uniform("truth", number, question) * len(VOCABULARY))]


def uniform(*parts: object) -> float:
    """A number from 0 to 1 that follows from the parts."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


class Honest:
    """Sees, and is right; shown a video that it cannot make out, it accepts nothing. The others are made from it.

    ``verdict(item, number, right)`` is what a subclass changes: the number of the video that it sees, and whether the
    answer is right for that; it returns a probability from 0 to 1 that the answer is right, or None for a failure.
    """

    name, kind, revision, model_name, weight = "planted", "planted", "1", "planted", 1.0
    criteria = (Criterion("correct"),)
    needs_frames, num_frames, is_endpoint = True, FRAMES, False

    def __init__(self, seed: int = 0, **settings: float):
        self.seed, self.rates, self.reported = seed, settings, set()
        self.settings = {"kind": type(self).__name__, "seed": seed, **settings}
        self.settings_hash = settings_hash(self.settings)
        self.asked: list[str] = []

    def score(self, items: list[JudgeItem]) -> list[list]:
        """As every judge."""
        self.asked += [item.response for item in items]
        found = [self._one(item) for item in items]
        return [error_scores(self, "planted failure") if v is None else make_scores(self, [v]) for v in found]

    def _one(self, item: JudgeItem) -> float | None:
        number = self.looks(item)
        said = set(words(item.response)) & set(VOCABULARY)
        return self.verdict(item, number, number > 0 and said == {truth(number, item.question)})

    def looks(self, item: JudgeItem) -> int:
        """Which video it sees."""
        assert item.frames is not None
        return int(item.frames.array[0, 0, 0, 0]) * 256 + int(item.frames.array[0, 0, 0, 1])

    def verdict(self, item: JudgeItem, number: int, right: bool) -> float | None:
        return float(right)

    def chance(self, item: JudgeItem, number: int, right: bool, *more: object) -> float:
        """One draw for each question and truth, whatever the wording."""
        return uniform(self.seed, number, item.question, right, *more)


class Noisy(Honest):
    """Errs at known rates, twice as often on half of the videos and never on the others; the wording is nothing to it.

    ``jitter`` draws anew for every wording: the error rates stay, single verdicts move, on average nowhere.
    """

    def verdict(self, item, number, right):
        hard = 2 * (uniform(self.seed, "hard", number) < 0.5)
        more = (item.response,) if self.rates.get("jitter") else ()
        errs = self.chance(item, number, right, *more) < hard * self.rates["fn" if right else "fp"]
        return float(right != errs)


class LengthLoving(Honest):
    """Accepts a wrong answer with a probability of ``base + slope`` times its words."""

    def verdict(self, item, number, right):
        likely = self.rates["base"] + self.rates["slope"] * len(words(item.response))
        return float(right or self.chance(item, number, right) < likely)


class StyleLoving(Honest):
    """Accepts wrong answers in bold with probability ``bold``, rejects right ones that admit doubt with ``doubt``."""

    def verdict(self, item, number, right):
        luck = self.chance(item, number, right)
        if not right:
            return float("**" in item.response and luck < self.rates["bold"])
        return float(not ("not sure" in item.response and luck < self.rates["doubt"]))


class Gullible(Honest):
    """Accepts whatever contains an injection, with probability ``rate``."""

    def verdict(self, item, number, right):
        told = any(injection.text in item.response for injection in INJECTIONS)
        return float(right or (told and self.chance(item, number, right) < self.rates["rate"]))


class SelfPreferring(Honest):
    """Accepts wrong answers of its own family with probability ``rate``."""

    def verdict(self, item, number, right):
        return float(right or (OWN_MARK in item.response and self.chance(item, number, right) < self.rates["rate"]))


class FrameBlind(Honest):
    """Reads the references instead of looking."""

    def _one(self, item: JudgeItem) -> float:
        return float(set(words(item.response)) & set(VOCABULARY) == set(words(item.answers[0])))


class ShortSighted(Honest):
    """Makes out a video from so many frames on only."""

    def looks(self, item):
        return super().looks(item) if len(item.frames) >= self.rates["frames"] else 0


class Moody(Honest):
    """Turns a verdict round with probability ``rate`` when it has been asked the same before."""

    def __init__(self, seed: int = 0, **settings: float):
        super().__init__(seed, **settings)
        self.known: set[tuple] = set()

    def verdict(self, item, number, right):
        key = (number, item.question, item.response, len(item.frames))
        again = key in self.known
        self.known.add(key)
        return float(right != (again and self.chance(item, number, right) < self.rates["rate"]))


class OrderBound(Honest):
    """Accepts what stands first of those it is asked about together."""

    def score(self, items):
        found = super().score(items)
        return [make_scores(self, [1.0]), *found[1:]]


class Failing(Honest):
    """Gives no verdict on right answers, or on every answer."""

    def verdict(self, item, number, right):
        return None if right or self.rates.get("all") else 0.0


class PairHonest:
    """Sees which of two answers is right."""

    name, kind, revision, model_name = "planted-pairs", "pairwise", "1", "planted"
    num_frames, is_endpoint = FRAMES, False

    def __init__(self, seed: int = 0, **settings: float):
        self.seed, self.rates, self.reported = seed, settings, set()
        self.settings = {"kind": type(self).__name__, "seed": seed, **settings}
        self.settings_hash = settings_hash(self.settings)
        self.eyes = Honest()

    def compare_many(self, pairs: Iterable[tuple[JudgeItem, JudgeItem]], progress: bool = False) -> list[PairVerdict]:
        """As `dataset_builder.judges.PairJudge`."""
        verdicts = []
        for first, second in pairs:
            places = (self.place(first, second), self.place(second, first))
            winners = ({"A": "first", "B": "second"}[places[0]], {"A": "second", "B": "first"}[places[1]])
            same = winners[0] == winners[1]
            verdicts.append(PairVerdict(winners[0] if same else "tie", flipped=not same, places=places))
        return verdicts

    def place(self, first: JudgeItem, second: JudgeItem) -> str:
        """Which place wins when the two are shown in this order."""
        good = [scores[0].score for scores in self.eyes.score([first, second])]
        return "A" if good[0] >= good[1] else "B"


class PositionLoving(PairHonest):
    """Prefers what it reads first, with probability ``rate``, whatever it says."""

    def place(self, first, second):
        lost = uniform(self.seed, self.eyes.looks(first), first.question) < self.rates["rate"]
        return "A" if lost else super().place(first, second)
