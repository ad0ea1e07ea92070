"""The card of an evaluator's repo, computed again from what lies in it.

Hashes and settings are made again from the judge's record, which holds its prompts; agreement and debiased figures from
``results/verdicts.parquet``, one row an answer and judge; bias from ``audit_rows.json``. How a judge was trained has no
rows: it is compared with what training wrote down, and named as not checkable.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from cards.stage_log import read_json
from cards.verify.checks import Check, Checks
from cards.verify.evaluator_rows import WORDING, check_agreement, check_bias
from cards.verify.model_logged import check_logged
from cards.verify.page import Page

_TRAINED = (
    (r"Its weights were trained on (\S+) answers", "answers it was trained on", ("answers",), str),
    (r"answers about (\S+) clips of", "clips it was trained on", ("clips",), str),
    (r"\(right from (\S+) of the range", "threshold of a right answer", ("target", "threshold"), str),
    (r"On (\S+) held-out answers", "held-out answers", ("validation", "answers"), str),
    (r"held-out answers about (\S+) videos", "held-out videos", ("validation", "videos"), str),
    (r"it agrees with it on (\S+ %)", "agreement on them", ("validation", "agreement", "mean"), None),
    (r"\(95 % interval (\S+ %) to", "low end of it", ("validation", "agreement", "low"), None),
    (r"% to (\S+ %), clustered", "high end of it", ("validation", "agreement", "high"), None),
    (r"ROC curve (\d\S*\d)\.", "area under the ROC curve", ("validation", "auc"), "{:.3f}".format),
    (r"\. (\S+ %) of them are right by", "right ones of them", ("validation", "share_right"), None),
)


def verify_evaluator(folder: Path) -> list[Check]:
    """Check every number of an evaluator's card.

    Raises:
        KitError: there is no card, or no evaluator, or rows that cannot be read.
    """
    from eval.evaluator.config import read_config

    page, config = Page.read(folder / "README.md"), read_config(folder)
    checks = Checks(page)
    page.constants(*WORDING)
    _record(checks, config["record"])
    check_bias(checks, folder)
    check_agreement(checks, folder)
    _training(checks, folder)
    return checks.finish()


def _record(checks: Checks, record: dict) -> None:
    """Hashes, settings, frames and prompts."""
    from dataset_builder.judges.base import settings_hash
    from eval.fingerprint import fingerprint_of

    page, settings = checks.page, record.get("settings") or {}
    made = settings_hash(settings)
    found = {"settings": made, "fingerprint": fingerprint_of({"reported": [], **record, "settings_hash": made})}
    for table in page.tables:
        for cells in table.rows if len(table.head) == 2 else []:
            name, cell = cells[0].text, cells[1]
            if name in found:
                checks.text(f"{name} (hash)", cell, f"`{found[name]}`")
            elif name == "revision":
                why = "names the weights; made again when it is loaded"
                check_logged(checks, "revision of the judge's model", cell, f"`{record.get('revision')}`", why)
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


def _training(checks: Checks, folder: Path) -> None:
    """What stands of training, against what it wrote down."""
    from eval.evaluator.card import share
    from eval.evaluator.weights import TRAINING

    written = next(iter(sorted(folder.glob(f"judge/*/{TRAINING}"))), None)
    record = read_json(written, {}) if written else {}
    for pattern, name, path, form in _TRAINED:
        if match := checks.page.find(pattern):
            value = record
            for key in path:
                value = (value or {}).get(key)
            text = "–" if value is None else (form or share)(value)
            why = f"measured while training, on answers whose verdicts are not in the repo ({TRAINING} says so)"
            check_logged(checks, name, checks.page.group(match), text, why)
