"""Probes of what an answer's wording, length and author do to its verdict, and the error rates they start from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from eval.audit.asking import Ask
from eval.audit.cases import Case
from eval.audit.findings import BIAS, FIGURE, Measure, Values
from eval.audit.sheet import Setup, Sheet, difference, mean_of_answers
from eval.audit.wording import DOSES, STYLES, as_is, padded, words_added

Change = Callable[[str], str]
WORDS = 10  # the slope of length is given for so many


def answers_of(case: Case) -> tuple[str, ...]:
    """Right and wrong answers of a case."""
    return case.right + case.wrong


def accuracy(sheet: Sheet, number: int, case: Case, **asked: str) -> float | None:
    """Mean of the share of a case's right answers that are accepted and of its wrong ones that are not."""
    right = mean_of_answers(case.right, lambda text: sheet.accept(Ask(number, text, **asked)))
    wrong = mean_of_answers(case.wrong, lambda text: sheet.accept(Ask(number, text, **asked)))
    return None if right is None or wrong is None else (right + 1 - wrong) / 2


class Errors:
    """How often the judge errs, on right and on wrong answers."""

    name, title = "errors", "Error rates"

    def problem(self, setup: Setup) -> str | None:
        """Always possible."""
        return None

    def asks(self, setup: Setup) -> Iterator[Ask]:
        """Every answer as it stands."""
        for number, case in enumerate(setup.cases):
            for text in answers_of(case):
                yield Ask(number, text)

    def measures(self, sheet: Sheet) -> Iterator[Measure]:
        """False negatives, false positives, balanced accuracy."""

        def rejected(number: int, case: Case) -> float | None:
            return difference(1.0, mean_of_answers(case.right, lambda text: sheet.accept(Ask(number, text))))

        def accepted(number: int, case: Case) -> float | None:
            return mean_of_answers(case.wrong, lambda text: sheet.accept(Ask(number, text)))

        yield Measure("false_negative", "right answers rejected", FIGURE, sheet.gather(rejected))
        yield Measure("false_positive", "wrong answers accepted", FIGURE, sheet.gather(accepted))
        yield Measure("accuracy", "balanced accuracy", FIGURE, sheet.gather(partial(accuracy, sheet)))


class Reworded:
    """What a change of wording does that leaves the content as it is."""

    name, title = "reworded", "Wording"

    def changes(self) -> dict[str, tuple[str, Change, Change]]:
        """Label, change and what it is compared with, by name."""
        raise NotImplementedError

    def problem(self, setup: Setup) -> str | None:
        """Always possible."""
        return None

    def asks(self, setup: Setup) -> Iterator[Ask]:
        """Every answer, changed and unchanged."""
        for number, case in enumerate(setup.cases):
            for text in answers_of(case):
                for _, change, control in self.changes().values():
                    yield Ask(number, change(text))
                    yield Ask(number, control(text))

    def measures(self, sheet: Sheet) -> Iterator[Measure]:
        """For each change: shift of the accept rate on wrong and on right answers, and of the score over both."""
        for name, (label, change, control) in self.changes().items():
            accepted = partial(self._shift, sheet.accept, change, control)
            scored = partial(self._shift, sheet.score, change, control)
            yield Measure(
                f"{name}_wrong",
                f"{label}: wrong answers accepted",
                BIAS,
                sheet.gather(lambda number, case, shift=accepted: shift(number, case.wrong)),
            )
            yield Measure(
                f"{name}_right",
                f"{label}: right answers accepted",
                BIAS,
                sheet.gather(lambda number, case, shift=accepted: shift(number, case.right)),
            )
            yield Measure(
                f"{name}_score",
                f"{label}: score",
                BIAS,
                sheet.gather(
                    lambda number, case, shift=scored: _half(shift(number, case.right), shift(number, case.wrong))
                ),
            )

    @staticmethod
    def _shift(read: Callable, change: Change, control: Change, number: int, texts: tuple[str, ...]) -> float | None:
        return mean_of_answers(
            texts,
            lambda text: difference(read(Ask(number, change(text))), read(Ask(number, control(text)))),
        )


def _half(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else (a + b) / 2


class Length(Reworded):
    """Whether the same answer gains by true but empty words."""

    name, title = "length", "Length"

    def changes(self) -> dict[str, tuple[str, Change, Change]]:
        """The longest padding; the shorter one is for the slope."""
        most = DOSES[-1]
        return {"padded": (f"{words_added(most)} empty words more", partial(padded, sentences=most), as_is)}

    def asks(self, setup: Setup) -> Iterator[Ask]:
        """The shorter paddings too."""
        yield from super().asks(setup)
        for number, case in enumerate(setup.cases):
            for text in case.wrong:
                for sentences in DOSES[:-1]:
                    yield Ask(number, padded(text, sentences))

    def measures(self, sheet: Sheet) -> Iterator[Measure]:
        """The slope too: least squares over the lengths of each wrong answer."""
        yield from super().measures(sheet)
        doses = (0, *DOSES)
        lengths = [words_added(sentences) / WORDS for sentences in doses]
        centre = sum(lengths) / len(lengths)
        spread = sum((length - centre) ** 2 for length in lengths)
        weights = [(length - centre) / spread for length in lengths]

        def slope(number: int, text: str) -> float | None:
            texts = [padded(text, sentences) if sentences else text for sentences in doses]
            accepted = [sheet.accept(Ask(number, one)) for one in texts]
            return None if None in accepted else sum(w * a for w, a in zip(weights, accepted))

        most = sum(weight for weight in weights if weight > 0)
        yield Measure(
            "slope_wrong",
            f"wrong answers accepted, per {WORDS} empty words",
            FIGURE,
            sheet.gather(lambda number, case: mean_of_answers(case.wrong, partial(slope, number))),
            (-most, most),
        )


class Style(Reworded):
    """Whether the same answer gains by bullet points, bold letters or a tone."""

    name, title = "style", "Style"

    def changes(self) -> dict[str, tuple[str, Change, Change]]:
        """Each style against the answer as it is, each tone against an introduction without one."""
        return STYLES


class SelfPreference:
    """Whether answers of the judge's own family fare better than the truth allows.

    Own and others' answers to the same question are compared, right ones with right ones and wrong ones with wrong
    ones, so that neither a better model nor an easier question looks like a preference.
    """

    name, title = "self_preference", "Self-preference"

    def problem(self, setup: Setup) -> str | None:
        """Own and other models must have answered."""
        if not setup.own:
            return "nobody said which models are of the judge's own family (--own)"
        models = {known.model for case in setup.cases for known in case.responses}
        if not models:
            return "the set holds no answers of known models"
        if not models - setup.own:
            return "the set holds answers of the judge's own family only"
        return None if models & setup.own else "the set holds no answers of the judge's own family"

    def asks(self, setup: Setup) -> Iterator[Ask]:
        """Every answer of a known model, where there are others to compare it with."""
        for number, case in enumerate(setup.cases):
            for truth in (True, False):
                mine, theirs = self._sides(setup, case, truth)
                for text in (*mine, *theirs) if mine and theirs else ():
                    yield Ask(number, text)

    def measures(self, sheet: Sheet) -> Iterator[Measure]:
        """Excess of the accept rate and of the score, on wrong and on right answers."""
        for name, truth in (("wrong", False), ("right", True)):
            for what, read in (("accepted", sheet.accept), ("score", sheet.score)):
                label = f"own {name} answers against others': {what}"
                yield Measure(f"{name}_{what}", label, BIAS, self._excess(sheet, truth, read))

    def _excess(self, sheet: Sheet, truth: bool, read: Callable) -> Values:
        def excess(number: int, case: Case) -> float | None:
            mine, theirs = self._sides(sheet.setup, case, truth)
            rates = [mean_of_answers(side, lambda text: read(Ask(number, text))) for side in (mine, theirs)]
            return difference(*rates)

        return sheet.gather(excess, lambda case: all(self._sides(sheet.setup, case, truth)))

    @staticmethod
    def _sides(setup: Setup, case: Case, truth: bool) -> tuple[list[str], list[str]]:
        known = [one for one in case.responses if one.right == truth]
        return [k.text for k in known if k.model in setup.own], [k.text for k in known if k.model not in setup.own]
