"""The card of an evaluator's repo: hashes and settings are made again from its judge's record, which holds the prompts.

Bias and agreement were measured on answers that are not in the repo: they are named as not checkable.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from cards.verify.checks import Check, Checks
from cards.verify.page import Page, Span

_WORDING = (r"`score` \(0 to 1\)", r"gold: 1, 0, or None", r"a 95 % interval clustered", r"with their 95 % intervals")
_BIAS = "measured on an audit's questions and verdicts, which are not in the repo"
_AGREEMENT = "measured on held-out answers, whose verdicts are not in the repo"


def verify_evaluator(folder: Path) -> list[Check]:
    """Check every number of an evaluator's card.

    Raises:
        KitError: there is no card, or no evaluator.
    """
    from dataset_builder.judges.base import settings_hash
    from eval.evaluator.config import read_config
    from eval.fingerprint import fingerprint_of

    page, config = Page.read(folder / "README.md"), read_config(folder)
    record, checks = config["record"], Checks(page)
    settings = record.get("settings") or {}
    page.constants(*_WORDING)
    made = settings_hash(settings)
    found = {"settings": made, "fingerprint": fingerprint_of({"reported": [], **record, "settings_hash": made})}
    for table in page.tables:
        for cells in table.rows if len(table.head) == 2 else []:
            name, cell = cells[0].text, cells[1]
            if name in found:
                checks.text(f"{name} (hash)", cell, f"`{found[name]}`")
            elif name == "revision":
                checks.unchecked(
                    "revision of the judge's model", cell, "names the weights; made again when it is loaded"
                )
            elif name in settings:
                page.claim(cells[0])
                value = json.dumps(settings[name], ensure_ascii=False, sort_keys=True).replace("\n", " ")
                checks.text(f"setting {name}", cell, f"`{value}`")
    if match := page.find(r"^Frames: (\S+) of each video"):
        checks.text("frames of a video", page.group(match), str((settings.get("frames") or {}).get("count")))
    for text in (settings.get(key) for key in ("system", "prompt", "example")):
        for line in str(text or "").splitlines():  # shown in full in the card, with the numbers in it
            for match in re.finditer(re.escape(line), page.body) if line.strip() else ():
                page.claim(page.group(match, 0))
    for heading, why in (("## Bias", _BIAS), ("## Agreement with the judges", _AGREEMENT)):
        _section(checks, heading, why)
    return checks.finish()


def _section(checks: Checks, heading: str, why: str) -> None:
    """Name every number of a section as not checkable."""
    page = checks.page
    begin = page.body.find(f"\n{heading}")
    end = page.body.find("\n## ", begin + 4)
    spans: list[Span] = [s for s in page.left_over() if begin < s.start < (end if end > 0 else len(page.body))]
    for span in spans if begin >= 0 else []:
        checks.unchecked(f"“{page.context(span, 30)}”", span, why)
