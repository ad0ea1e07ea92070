"""How numbers are written in cards and reports, and the Jinja environment that fills the templates.

A measurement that is missing is written as "not measured"; nothing is ever made up or left as a blank.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

NOT_MEASURED = "not measured"
PAPER = "https://arxiv.org/abs/2411.16201"

CITATION = f"""\
The method is described in [arXiv 2411.16201]({PAPER}); please cite it:

```bibtex
@misc{{yi2024videotext,
  title         = {{Video-Text Dataset Construction from Multi-AI Feedback: Promoting Weak-to-Strong Preference Learning
                   for Video Large Language Models}},
  author        = {{Yi, Hao and Li, Qingyang and Hu, Yulan and Zhang, Fuzheng and Zhang, Di and Liu, Yong}},
  year          = {{2024}},
  eprint        = {{2411.16201}},
  archivePrefix = {{arXiv}},
  url           = {{{PAPER}}}
}}
```"""

SCHEME_WORDS = {
    "base": "the model every arm starts from",
    "sft_chosen": "control: supervised training on the chosen answers",
    "dpo": "one run of DPO",
    "dpo_expo": "that same run of DPO, then extrapolated once",
    "dpo_matched": "one run of DPO at the learning rate with which it ends as far from the base as iter_w2s",
    "dpo_on_policy": "one run of DPO; rejected answers are the base's own errors",
    "iter": "iterated DPO, alpha 0 in every round",
    "iter_w2s": "iterated DPO, alpha chosen per round on validation",
    "iter_on_policy": "iterated DPO, alpha 0, rejected answers sampled before each round from the model as it is then",
    "iter_w2s_on_policy": "iterated DPO, alpha chosen per round on validation, rejected answers sampled before each",
}
SUFFIX_WORDS = {
    "sft": "with an SFT term on the chosen answers",
    "visual": "pairs built without ground truth",
}


def missing(value: object) -> bool:
    """True for None and NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def count(value) -> str:
    """12345 → 12,345."""
    return NOT_MEASURED if missing(value) else f"{int(value):,}"


def share(value, digits: int = 1) -> str:
    """0.7312 → 73.1 %."""
    return NOT_MEASURED if missing(value) else f"{100 * value:.{digits}f} %"


def points(value, digits: int = 1) -> str:
    """0.153 → +15.3 (percentage points)."""
    return NOT_MEASURED if missing(value) else f"{100 * value:+.{digits}f}".replace("-", "−")


def interval(bounds) -> str:
    """[0.61, 0.68] → 61.0 – 68.0 %."""
    if not bounds or any(missing(bound) for bound in bounds):
        return NOT_MEASURED
    return f"{100 * bounds[0]:.1f} – {100 * bounds[1]:.1f} %"


def number(value, digits: int = 3) -> str:
    """0.12345 → 0.123; 4e-05 → 4e-05."""
    if missing(value):
        return NOT_MEASURED
    return f"{value:.{digits}g}" if 0 < abs(value) < 1e-3 else f"{value:.{digits}f}"


def short(value) -> str:
    """As few digits as the number needs: 0.0 → 0, 0.50 → 0.5."""
    return NOT_MEASURED if missing(value) else f"{value:g}"


def p_value(value) -> str:
    """0.00001 → < 0.0001; 0.0312 → 0.031."""
    if missing(value):
        return NOT_MEASURED
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.01 else f"{value:.3f}"


def alphas(values) -> str:
    """[0.0, 0.5] → 0, 0.5; nothing to extrapolate → –."""
    return ", ".join(short(value) for value in values) if values else "–"


def arm_words(name: str, arms: dict[str, dict] | None = None) -> str:
    """What an arm is, in a few words made from its scheme and suffixes; empty for a name that means nothing.

    Args:
        name: of the arm.
        arms: the table. A variant is then described by what sets it apart from the plain arm where that is shown too,
            and the weight of its SFT term is said.
    """
    arms = arms or {}
    scheme, *suffixes = name.split("+")
    if scheme not in SCHEME_WORDS or any(suffix not in SUFFIX_WORDS for suffix in suffixes):
        return ""
    words = [f"as {scheme}" if suffixes and scheme in arms else SCHEME_WORDS[scheme]]
    for suffix in suffixes:
        weight = arms.get(name, {}).get("sft_weight") if suffix == "sft" else None
        words.append(SUFFIX_WORDS[suffix] + (f" (weight {weight:g})" if weight else ""))
    return ", ".join(words)


def remark(arm: dict) -> str:
    """What a reader must know to read an arm's row: why it was stopped, and whether its answers fell apart."""
    from recipes.guards import GuardLimits

    said, stopped = [], arm.get("stopped")
    if stopped:
        said.append(f"stopped {'in ' if stopped.startswith('round') else ''}{stopped}")
        if arm.get("steps") == 0:
            said.append("no round was kept, so this is the base")
    limits, health = GuardLimits(), arm.get("health") or {}
    for name, what in (("malformed", "empty or unfinished"), ("repeated", "repetitions of themselves")):
        if (health.get(name) or 0) > getattr(limits, name):
            said.append(f"{share(health[name], 0)} of its validation answers are {what}")
    return "; ".join(said)


def rate(value) -> str:
    """A learning rate, 0.000136984 → 0.000137; an arm that has none → –."""
    return "–" if missing(value) else f"{value:.3g}"


def codes(value: str):
    """Text with `names` between backticks as HTML."""
    import re

    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(value))))


@cache
def environment():
    """The Jinja environment over ``cards/templates`` with the filters above; HTML templates are escaped."""
    from eval import templates

    made = templates.environment(Path(__file__).parent / "templates", lambda name: bool(name) and ".html" in name)
    for function in (count, share, points, interval, number, short, p_value, alphas, rate, arm_words, remark):
        made.filters[function.__name__] = function
    made.filters["codes"] = codes
    made.globals.update(NOT_MEASURED=NOT_MEASURED, PAPER=PAPER, CITATION=CITATION)
    return made
