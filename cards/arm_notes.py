"""What has to be said about a comparison of arms, besides its table: the same sentences in the card and the report."""

from __future__ import annotations

from cards.run_folder import Run
from cards.style import arm_of
from cards.text import count, remark

COMPARATORS = ("base", "dpo")
NAMED = 6  # more arms than this are counted, not listed


def arm_context(run: Run) -> dict:
    """What templates need to show the arms.

    Returns:
        ``comparators`` (arms that others were tested against, where they are shown), ``remarks`` (by arm, only where
        there is something to say) and ``notes`` (sentences, names between backticks).
    """
    return {
        "comparators": [name for name in COMPARATORS if name in run.arms],
        "remarks": {name: said for name, arm in run.arms.items() if (said := remark(arm))},
        "notes": notes(run),
    }


def notes(run: Run) -> list[str]:
    """How the arms were made equal, where they are not, and how the released one was chosen."""
    arms, steps = run.arms, run.training.get("steps")
    specs = {name: arm_of(name) for name in arms}
    said = [
        "Every arm was given the same number of optimizer steps"
        + (f" ({count(steps)})" if steps else "")
        + " and the same search over learning rates on validation."
    ]
    fewer = [name for name, arm in arms.items() if name != "base" and arm.get("stopped") and arm.get("steps") != steps]
    if fewer:
        said.append(f"{_names(fewer)} took fewer, because {'it was' if len(fewer) == 1 else 'they were'} stopped.")
    if any(arm.get("samples") for arm in arms.values()):
        said.append(
            "Answers that an arm sampled itself (extra samples) and the verdicts asked for them (judge calls) come on "
            "top of its steps; they are counted for the run that was chosen, without the search."
        )
    matched = [name for name, spec in specs.items() if spec.scheme == "dpo_matched"]
    if matched:
        said.append(
            f"{_names(matched)} had no search: {'its' if len(matched) == 1 else 'their'} learning rate is the one with "
            "which a single run of DPO ends as far from the base as the arm of the same suffixes with `iter_w2s`, so "
            "the two differ in how they went, not in how far."
        )
    if any(spec.visual for spec in specs.values()):
        said.append(
            "The pairs of arms with `+visual` were built without ground truth: only judges that look at the video and "
            "see no true answer had a say. Alpha and learning rate were chosen on validation questions with known "
            "answers all the same."
        )
    if run.release_arm in arms:
        said.append(
            "The released arm is the trained one, controls left out, that is best on validation; of equals the simpler "
            f"one{_better(run)}."
        )
    return said


def _better(run: Run) -> str:
    """Says which arms are higher on test than the released one."""
    own = run.arms[run.release_arm].get("accuracy") or 0
    higher = {name: arm["accuracy"] for name, arm in run.arms.items() if (arm.get("accuracy") or 0) > own}
    if not higher:
        return ""
    if len(higher) > NAMED:
        return f"; on test {len(higher)} arms are higher, most of all `{max(higher, key=higher.get)}`"
    return f"; on test {_names(list(higher))} {'is' if len(higher) == 1 else 'are'} higher"


def _names(names: list[str]) -> str:
    if len(names) > NAMED:
        return f"{len(names)} arms"
    return ", ".join(f"`{name}`" for name in names)
