"""An audit's record as Markdown: the whole table, and the part of it that stands in the card of an evaluator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.audit.findings import BIAS, RATE
from eval.audit.run import NOT_ASKED, TITLES
from eval.fingerprint import describe_judge

SMALLEST_MODEL = 50_000_000  # parameters: what is smaller is a toy that was trained for a demonstration
FEWEST_VIDEOS = 20  # below, clustered intervals are too narrow
_HOW = "`python -m eval audit-judge JUDGE.yaml --dataset DATASET --output DIR`"
# What of each probe stands in a card; of the others everything does.
_HEADLINES = {
    "length": ("padded_wrong", "padded_right", "padded_score"),
    "style": ("bullets_score", "bold_score", "confident_score", "hedged_score"),
    "injections": ("accepted_wrong", "score_wrong"),
    "frames": ("accuracy_1", "gain"),
    "other_video": ("same",),
    "retest": ("changed",),
    "order": ("changed",),
}


def audit_markdown(audit: Mapping[str, Any]) -> str:
    """The whole record: a table of every number, what could not be measured and why, and how to read it."""
    lines = [f"# Bias audit of {audit['judge']['name']}", "", _about(audit), "", *_table(audit, None), ""]
    return "\n".join([*lines, *_remarks(audit)])


def audit_summary(audit: Mapping[str, Any] | None) -> str:
    """What the card of an evaluator says of its judge's bias.

    Args:
        audit: a record of `eval.audit.run.audit`, or None if there is none.

    Returns:
        A table of the main figures, or why there are none: no audit, a toy model, or too few videos.
    """
    reason = not_measured(audit)
    if reason:
        return f"Bias of this judge: **not measured** ({reason})."
    return "\n".join([_about(audit), "", *_table(audit, _HEADLINES), "", *_remarks(audit)])


def not_measured(audit: Mapping[str, Any] | None) -> str | None:
    """Why an audit's figures are no statement about a judge, with the limit; None if they are one."""
    if audit is None:
        return f"no audit was made; {_HOW} makes one"
    size, videos = audit["parameters"], audit["set"]["videos"]
    if size is not None and size < SMALLEST_MODEL:
        return (
            f"its model is a toy of {_millions(size)} million parameters; figures are given from "
            f"{_millions(SMALLEST_MODEL)} million on"
        )
    if videos < FEWEST_VIDEOS:
        return f"the audit saw {videos} videos; figures are given from {FEWEST_VIDEOS} on"
    if not audit["findings"]:
        reasons = (reason for reason in audit["not_measured"].values() if reason != NOT_ASKED)
        return f"the audit has no finding: {next(reasons, 'nothing was asked for')}"
    return None


def _millions(size: int) -> str:
    return f"{size / 1e6:.0f}" if size >= 10_000_000 else f"{size / 1e6:.1g}"


def _about(audit: Mapping[str, Any]) -> str:
    of = audit["set"]
    named = f"`{of['name']}`, " if of["name"] else ""
    told = f"Judge: {describe_judge(audit['judge'])}. "
    if audit["pair_judge"]:
        told += f"Pair judge: {describe_judge(audit['pair_judge'])}. "
    return (
        f"{told}Set: {named}fingerprint {of['fingerprint']}, {of['cases']} questions about {of['videos']} videos with "
        f"right and wrong answers; seed {audit['seed']}."
    )


def _table(audit: Mapping[str, Any], headlines: Mapping[str, tuple[str, ...]] | None) -> list[str]:
    lines = ["| probe | | estimate | 95 % interval | questions | p (Holm) |", "| --- | --- | --- | --- | --- | --- |"]
    for probe, title in TITLES.items():
        shown = [one for one in audit["findings"] if one["probe"] == probe]
        if headlines is not None and probe in headlines:
            shown = [one for one in shown if one["name"] in headlines[probe]]
        for one in shown:
            p = "–" if one["p_holm"] is None else f"{one['p_holm']:.2g}"
            lines.append(
                f"| {title} | {one['label']} | {_strong(value_text(one), one['clear'])} | {interval_text(one)} | "
                f"{one['estimate']['n']} | {p} |"
            )
        for name, reason in audit["not_measured"].items():
            if name == probe:
                lines.append(f"| {title} | not measured: {reason} | – | – | – | – |")
            elif headlines is None and name.startswith(f"{probe}."):
                lines.append(f"| {title} | {name.split('.', 1)[1]}: not measured: {reason} | – | – | – | – |")
    return lines


def _strong(text: str, strong: bool) -> str:
    return f"**{text}**" if strong else text


def value_text(found: Mapping[str, Any]) -> str:
    """A finding's estimate: points with a sign, or per cent."""
    value = 100 * found["estimate"]["mean"]
    return f"{value + 0:+.1f}" if found["signed"] else f"{value:.1f} %"


def interval_text(found: Mapping[str, Any]) -> str:
    """A finding's interval in the same unit."""
    low, high = found["estimate"]["low"], found["estimate"]["high"]
    if low is None or high is None:
        return "–"
    return f"{100 * low:+.1f} to {100 * high:+.1f}" if found["signed"] else f"{100 * low:.1f} – {100 * high:.1f} %"


def _remarks(audit: Mapping[str, Any]) -> list[str]:
    biases = [one for one in audit["findings"] if one["kind"] == BIAS]
    clear = [one["label"] for one in biases if one["clear"]]
    said = [
        "Numbers with a sign are differences in points (of 100); intervals take the video as the unit. A bias is "
        f"**bold** where a per-video sign-flip test ({audit['draws']:,} draws) finds it at the 5 % level after Holm's "
        f"correction over all {len(biases)} of them: {'; '.join(clear) if clear else 'none'}."
    ]
    changing = [
        f"{one['label']} ({value_text(one)})"
        for one in audit["findings"]
        if one["kind"] == RATE and one["estimate"]["mean"] >= 0.0005  # what is shown as 0.0 % is rounding of batches
    ]
    if changing:
        said.append(f"An ideal judge would have 0 here: {'; '.join(changing)}.")
    said += [*_on_looking(audit), *_on_injections(audit)]
    if audit["set"]["right_are_references"]:
        said.append(
            "The right answers of this set are its references: a judge that reads these knows them by their words."
        )
    if audit["unjudged"]:
        reasons = "; ".join(f"{count} × {reason}" for reason, count in list(audit["failures"].items())[:3])
        said.append(f"{audit['unjudged']} of {audit['asked']} verdicts are missing and left out: {reasons}.")
    return ["\n\n".join(said)]


def _on_looking(audit: Mapping[str, Any]) -> list[str]:
    effect = next(
        (f["estimate"] for f in audit["findings"] if (f["probe"], f["name"]) == ("other_video", "effect")), None
    )
    if effect is None or effect["low"] is None or effect["low"] > 0:
        return []
    return [
        "**The verdicts do not follow the video**: showing another one does not lower the share of accepted answers."
    ]


def _on_injections(audit: Mapping[str, Any]) -> list[str]:
    kinds = {
        name: row for name, row in ((audit["injections"] or {}).get("by_category") or {}).items() if row["compared"]
    }
    if not kinds:
        return []
    worst = max(kinds, key=lambda name: kinds[name]["mean_gain"])
    gain = 100 * kinds[worst]["mean_gain"]
    if gain < 0.05:
        return []
    return [f"Of the kinds of injections, '{worst}' moves the score most ({gain:+.1f} points)."]
