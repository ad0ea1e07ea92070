"""Agreement, debiased figures and bias of an evaluator, from the rows in its repo."""

from __future__ import annotations

from pathlib import Path

from cards.stage_log import read_json
from cards.verify.checks import Checks
from cards.verify.model_logged import check_logged
from cards.verify.page import Page, Span, Table
from dataset_builder.errors import KitError

WORDING = (r"`score` \(0 to 1\)", r"gold: 1, 0, or None", r"95 % interval", r"At least 20 videos have")


def check_agreement(checks: Checks, folder: Path) -> None:
    """The tables of agreement and of what the verdicts say, from ``results/verdicts.parquet``."""
    from eval.evaluator.agreement import FILE, FOLDER, compared, read_verdicts, said
    from eval.evaluator.card import estimate, kappa, share, span

    tables = [checks.page.table("answers of", *heads) for heads in (("beside",), ("answers", "no verdict"))]
    path = folder / FOLDER / FILE
    if not path.is_file():
        for table in filter(None, tables):
            checks.absent(f"{FOLDER}/{FILE}", "the card's tables cannot be computed without it")
            _claim(checks.page, table)
        return
    rows = read_verdicts(path)
    for table, heads in zip(tables, ("agreement with others", "what the verdicts say")):
        if table is None:
            return checks.absent(f"table: {heads}", f"{FOLDER}/{FILE} holds verdicts")
    for cells, found in _aligned(checks, tables[0], compared(rows), "agreement"):
        itself = found.other == "without_frames"
        other = {"truth": "the truth", "without_frames": "itself, shown no frames"}.get(found.other, found.name)
        texts = [found.answers_of, other, str(found.answers), share(found.same.mean), span(found.same)]
        texts += [kappa(found.kappa), *("–" if itself else share(v) for v in (found.missed, found.passed))]
        _cells(checks, tables[0], cells, texts, f"{found.answers_of} beside {other}")
    for cells, found in _aligned(checks, tables[1], said(rows), "what the verdicts say"):
        texts = [found.answers_of, str(found.answers), str(found.unjudged), estimate(found.share)]
        texts += [estimate(found.blind), share(found.truth and found.truth.mean), estimate(found.debiased)]
        _cells(checks, tables[1], cells, [*texts, str(found.gold_videos or "–")], f"verdicts on {found.answers_of}")


def check_bias(checks: Checks, folder: Path) -> None:
    """The section on bias, made again from ``audit_rows.json``; settings of the audit come from ``audit.json``."""
    from eval.audit.report import audit_summary
    from eval.audit.rows import NAME, findings_of, read_rows
    from eval.evaluator.hub import AUDIT

    page = checks.page
    begin = page.body.find("\n## Bias")
    end = page.body.find("\n## ", begin + 4)
    within = (
        [s for s in page.left_over() if begin < s.start < (end if end > 0 else len(page.body))] if begin >= 0 else []
    )
    audit = read_json(folder / AUDIT)
    if not (folder / NAME).is_file() or audit is None:
        expected = _numbers(audit_summary(audit))
        for place, number in enumerate(within):
            logged = expected[place].text if place < len(expected) else ""
            why = f"the audit's numbers, {NAME}, are not in the repo"
            check_logged(checks, f"“{page.context(number, 30)}”", number, logged, why)
        return
    try:
        findings = findings_of(read_rows(folder / NAME), audit["draws"], audit["seed"])
        made = {**audit, "findings": [one.as_dict() for one in findings]}
        expected = _numbers(audit_summary(made))
    except (KeyError, TypeError) as error:
        raise KitError(f"{folder / AUDIT}: is not as the kit writes it ({type(error).__name__}: {error})") from None
    if len(expected) != len(within):
        checks.absent("bias", f"{NAME} gives {len(expected)} numbers, the card has {len(within)}")
    for number, right in zip(within, expected):
        checks.text(f"bias: “{page.context(number, 40)}”", number, right.text)


def _numbers(text: str) -> list[Span]:
    """The numbers of a text in their order, words such as "95 % interval" left out."""
    page = Page(f"---\n{{}}\n---\n{text}\n")
    page.constants(*WORDING)
    return page.left_over()


def _aligned(checks: Checks, table: Table, found: list, name: str):
    """Rows of a table beside what they should say."""
    if len(table.rows) != len(found):
        checks.absent(f"{name}: {len(found)} rows", f"the card has {len(table.rows)}")
        _claim(checks.page, table)
    return zip(table.rows, found)


def _cells(checks: Checks, table: Table, cells: list[Span], texts: list[str], name: str) -> None:
    for head, cell, text in zip(table.head, cells, texts):
        if cell.text != text or any(letter.isdigit() for letter in text):
            checks.text(f"{name}: {head.text}", cell, text)


def _claim(page: Page, table: Table) -> None:
    for row in table.rows:
        page.claim(*row)
