"""What a verification found: one line for every number, and what it all comes to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cards.verify.page import Page, Span

OK, DIFFERS, UNCHECKED, UNCOVERED = "ok", "DIFFERS", "not checkable", "not covered"
EXIT_DIFFERS = 5  # a number of the card is not what the rows give
ROUNDING = 1e-9  # two orders of adding the same numbers


@dataclass(frozen=True)
class Check:
    """One number.

    Attributes:
        name: what it is.
        shown: as it stands in the card.
        found: computed again and written as cards write it; None where that cannot be done.
        state: `OK`, `DIFFERS`, `UNCHECKED` or `UNCOVERED`.
        why: for a number that was not computed again.
        line: in README.md; None for what is no number of the text.
    """

    name: str
    shown: str
    found: str | None
    state: str
    why: str = ""
    line: int | None = None


class Checks:
    """The checks of one card.

    Args:
        page: the card; every number that is checked is taken off its account.
    """

    def __init__(self, page: Page):
        self.page = page
        self.all: list[Check] = []

    def number(
        self, name: str, span: Span, value: float | None, form: Callable[[float | None], str], slack: float = ROUNDING
    ) -> None:
        """Compare a number of the text.

        Args:
            name: what it is.
            span: where it stands.
            value: computed again.
            form: how cards write it.
            slack: how far the value may be off before it is written: rounding of what the card was made from.
        """
        near = [value] if value is None else [value, value - slack, value + slack]
        self.text(name, span, form(value), *(form(other) for other in near[1:]))

    def text(self, name: str, span: Span, found: str, *also: str) -> None:
        """Compare a piece of the text with how it should read, or also may."""
        shown = " ".join(span.text.split())
        state = OK if shown in (found, *also) else DIFFERS
        self.all.append(Check(name, shown, found, state, line=self.page.line(span.start)))
        self.page.claim(span)

    def held(self, name: str, kept: int, of: int) -> None:
        """Check that rows agree with each other: all of them should."""
        self.value(name, f"all {of:,}", f"all {of:,}" if kept == of else f"{kept:,} of {of:,}")

    def value(self, name: str, shown: object, found: object) -> None:
        """Compare what stands in no sentence, such as a key of the YAML block."""
        self.all.append(Check(name, str(shown), str(found), OK if shown == found else DIFFERS))

    def unchecked(self, name: str, span: Span | str, why: str) -> None:
        """Say of a number that it cannot be computed from released rows, and why."""
        if isinstance(span, Span):
            self.page.claim(span)
            text, line = " ".join(span.text.split()), self.page.line(span.start)
        else:
            text, line = span, None
        self.all.append(Check(name, text, None, UNCHECKED, why, line))

    def absent(self, name: str, why: str) -> None:
        """A part of the card that must be there is not."""
        self.all.append(Check(name, "(not in the card)", None, DIFFERS, why))

    def finish(self) -> list[Check]:
        """Add the numbers that no rule has dealt with, and return all checks."""
        for span in self.page.left_over():
            context = self.page.context(span)
            self.all.append(Check(f"“{context}”", span.text, None, UNCOVERED, "", self.page.line(span.start)))
        return self.all


def exit_code(checks: list[Check]) -> int:
    """5 when a number differs, 2 when there was nothing to check or a number has no rule, else 0."""
    states = [check.state for check in checks]
    if DIFFERS in states:
        return EXIT_DIFFERS
    return 2 if OK not in states or UNCOVERED in states else 0


def as_text(checks: list[Check], title: str) -> str:
    """The table for people: numbers that differ are named again at the end."""
    width = min(64, max((len(check.name) for check in checks), default=0))
    lines = [title, f"{'number':<{width}}  {'in the card':<18}  {'recomputed':<18}  "]
    for check in checks:
        where = f"  (line {check.line})" if check.line and check.state != OK else ""
        said = f"{check.state}: {check.why}" if check.why else check.state
        name = check.name if len(check.name) <= width else check.name[: width - 1] + "…"
        lines.append(f"{name:<{width}}  {check.shown[:40]:<18}  {(check.found or '–')[:40]:<18}  {said}{where}")
    count = {state: sum(c.state == state for c in checks) for state in (OK, DIFFERS, UNCHECKED, UNCOVERED)}
    lines.append(
        f"{count[OK]} ok, {count[DIFFERS]} differ, {count[UNCHECKED]} not checkable from rows, "
        f"{count[UNCOVERED]} not covered by a rule"
    )
    for check in checks:
        if check.state == DIFFERS:
            found = f"the rows give {check.found}" if check.found is not None else check.why
            lines.append(f"differs: {check.name}: the card says {check.shown}, {found}")
    return "\n".join(lines)
