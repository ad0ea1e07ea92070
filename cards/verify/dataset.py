"""The card of a dataset repo against the dataset's rows."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

from cards.dataset_stats import reference_judge
from cards.text import NOT_MEASURED, count, number, share, short
from cards.verify.agreement import check_rows
from cards.verify.checks import Check, Checks
from cards.verify.front import check_front
from cards.verify.measured import (
    check_agreement,
    check_coverage,
    check_criteria,
    check_drops,
    check_length,
    check_prompts,
    check_samples,
    check_sources,
)
from cards.verify.page import Page
from cards.verify.rows import Rows
from dataset_builder.errors import KitError

_STORED = 1e-6  # the selection writes its figures with six digits
_HELD_OUT = "test questions, kept for the benchmark by design"
two, whole, tenth = partial(number, digits=2), partial(share, digits=0), share
# Ranges, headings and list numbers that stand in every card, whatever was measured.
_WORDING = (
    *(r"^\d+\. (?=\*\*)", r"aggregates in 0–1", r"criteria in 0–1"),
    *(r"`match` is 1\)", r"intervals are 95 %", r"its 95 % interval is", r"is 1 for perfect agreement and 0 for"),
    *(r"\| 95 % interval \|", r"\(95 % interval"),
)


def verify_dataset(folder: Path) -> list[Check]:
    """Check every number of a dataset's card.

    Raises:
        KitError: there is no card, or no rows.
    """
    page, rows = Page.read(folder / "README.md"), Rows(folder)
    checks = Checks(page)
    page.constants(*_WORDING)
    for part in (check_front, _sentences, _zoo, _decoding, _judges, _splits, _drops, _control, _measured):
        part(checks, rows)
    for part in (check_sources, check_coverage, check_criteria, check_length, check_agreement, check_prompts):
        part(checks, rows)
    check_samples(checks, rows)
    _diversity(checks, rows)
    _end(checks, rows)
    check_rows(checks, rows)
    return checks.finish()


def _sentences(checks: Checks, rows: Rows) -> None:
    page, members = checks.page, len(rows.zoo())
    found = page.find(
        r"^(\S+) preference pairs over (\S+) questions about (\S+) clips,"
        r" (?:selected from|imported ready-made with their) (\S+) answers(?: of (\S+) models)?"
    )
    if found is None:
        checks.absent("pairs, questions, clips and answers", "its first sentence is not there")
    else:
        names = ("pairs", "questions", "clips", "answers")
        for place, name in enumerate(names, 1):
            checks.number(name, page.group(found, place), rows.counts[name], count)
        if found[5] is not None:
            checks.number("models", page.group(found, 5), members, short)
    if found := page.find(r"Each of (\d+) members? answered"):
        checks.number("members that answered", page.group(found), members, short)
    if found := page.find(r"(\d+) judges? scored every answer"):
        checks.number("judges", page.group(found), len(rows.judges()), short)
    margins = rows.margins()
    if found := page.find(r"at least (\S+) apart"):
        span = page.group(found)
        asked = _rule(rows).get("min_margin")
        kept = asked if margins is None or asked is None or margins["smallest"] >= asked - 1e-9 else margins["smallest"]
        checks.number("least margin of a pair", span, kept, short)
    if found := page.find(r"^Margins: smallest (.+?), median (.+?), mean (.+?)\.$"):
        for place, name in enumerate(("smallest", "median", "mean"), 1):
            checks.number(f"{name} margin", page.group(found, place), (margins or {}).get(name), two)


def _zoo(checks: Checks, rows: Rows) -> None:
    table = checks.page.table("member", "revision", "answers")
    if table is None:
        return checks.absent("table of the members", "it is not there")
    known = {member["name"]: member for member in rows.zoo()}
    checks.value("members in the table", sorted(row[0].text for row in table.rows), sorted(known))
    for name, *cells in table.rows:
        member = known.get(name.text, {})
        checks.page.claim(name)
        revisions = sorted(str(one) for one in member.get("revisions", []) if one)
        shown = ", ".join(f"`{one}`" for one in revisions) or NOT_MEASURED
        checks.text(f"revision of {name.text}", cells[0], shown)
        figures = (("answers", count), ("score", two), ("chosen", count), ("rejected", count), ("win_rate", whole))
        words = ("answers", "mean score", "chosen", "rejected", "share of its pairs won")
        for (key, form), word, cell in zip(figures, words, cells[1:]):
            checks.number(f"{word}, {name.text}", cell, member.get(key), form)


def _decoding(checks: Checks, rows: Rows) -> None:
    table = checks.page.table("member", "temperature")
    decoding = rows.decoding()
    if table is None:
        return
    for name, *cells in table.rows:
        checks.page.claim(name)
        settings = decoding.get(name.text, {})
        for head, cell in zip(table.head[1:], cells):
            values = settings.get(head.text, settings.get("num_frames", []) if head.text == "frames" else [])
            found = ", ".join(short(value) for value in values) or NOT_MEASURED
            checks.text(f"{head.text}, {name.text}", cell, found)


def _judges(checks: Checks, rows: Rows) -> None:
    table, known = checks.page.table("judge", "criteria"), rows.judges()
    if table is None:
        return checks.absent("table of the judges", "it is not there") if known else None
    checks.value("judges in the table", sorted(row[0].text for row in table.rows), sorted(known))
    for name, *cells in table.rows:
        judge = known.get(name.text, {"criteria": [], "revisions": [], "settings": [], "scores": None, "errors": None})
        checks.page.claim(name)
        shown = cells[0].text.split(", ")
        order = [one for one in shown if one in judge["criteria"]]
        order += [one for one in judge["criteria"] if one not in order]
        checks.text(f"criteria of {name.text}", cells[0], ", ".join(order))
        for word, key, cell in (("revision", "revisions", cells[1]), ("settings", "settings", cells[2])):
            # a judge may have one for each criterion: the card shows the first
            values = [f"`{one}`" for one in sorted(str(one) for one in judge[key] if one)] or ["–"]
            checks.text(f"{word} of {name.text}", cell, cell.text if cell.text in values else ", ".join(values))
        checks.number(f"scores, {name.text}", cells[3], judge["scores"], count)
        checks.number(f"errors, {name.text}", cells[4], judge["errors"], count)


def _splits(checks: Checks, rows: Rows) -> None:
    table = checks.page.table("config", "train")
    if table is None:
        return checks.absent("rows by config and split", "the table is not there")
    known = rows.splits()
    for name, *cells in table.rows:
        config = name.text.split("`")[1] if "`" in name.text else name.text
        for head, cell in zip(table.head[1:], cells):
            found = known.get(config, {}).get(head.text)
            checks.text(f"rows of {config}, {head.text}", cell, count(found) if found else "–")


def _rule(rows: Rows) -> dict:
    return rows.provenance.get("pairs") or {}


def _fates(rows: Rows) -> Counter:
    """Why each question without a pair has none, by the rule of the selection; ``elsewhere`` where its answers alone
    would have given one."""
    from dataset_builder.selection.pairs import HELD_OUT, select_pair
    from dataset_builder.settings import PairsConfig

    simple = ("min_margin", "select", "min_chosen", "max_rejected", "ties", "max_per_question")
    rule = PairsConfig(**{key: value for key, value in _rule(rows).items() if key in simple})
    paired = {row[0] for row in rows.all("SELECT DISTINCT question_id FROM preferences")} if rows.has_pairs else set()
    fates: Counter = Counter()
    for question, split in rows.all("SELECT question_id, split FROM questions"):
        if question in paired:
            continue
        if split == "test":
            fates[HELD_OUT] += 1
        else:
            outcome = select_pair(question, rows.by_question.get(question, []), weights=rows.weights, rule=rule)
            fates[outcome.drop or "elsewhere"] += 1
    return fates


def _drops(checks: Checks, rows: Rows) -> None:
    from dataset_builder.selection import pairs as rules

    page, fates = checks.page, _fates(rows)
    total = sum(fates.values())
    table = page.table("questions without a pair")
    if table is None:
        checks.absent("questions without a pair", "the table is not there")
    else:
        names = {reason.replace("_", " "): reason for reason in rules.REASONS} | {_HELD_OUT: rules.HELD_OUT}
        own = set(rules.REASONS[: rules.REASONS.index(rules.HELD_OUT) + 1])
        asked = {names.get(label.text, label.text): (label, cell) for label, cell in table.rows if cell.text}
        # a duplicate or a leak is taken out before its answers are looked at
        before = any(reason == rules.DUPLICATE or reason.startswith(rules.LEAK) for reason in asked)
        alike = (_rule(rows).get("dedup") or {}).get("answers", "exact") in ("exact", "none")
        summed = 0
        for reason, (label, cell) in asked.items():
            page.claim(label)
            summed += int(cell.text.replace(",", "")) if cell.text.replace(",", "").isdigit() else 0
            name = f"questions without a pair: {label.text}"
            if reason == "none":
                checks.number(name, cell, total, count)
            elif reason not in own:
                why = "the rule looks at other questions, at evaluation sets or at a pair judge"
                checks.unchecked(name, cell, why)
            elif before or not alike:
                why = "some of them were duplicates or leaks first" if before else "answers alike in meaning count here"
                checks.unchecked(name, cell, why)
            else:
                checks.number(name, cell, fates.get(reason, 0), count)
        page.claim(*(cell for row in table.rows for cell in row))
        if asked:
            checks.value("questions without a pair, all reasons", count(summed), count(total))
            missing = [r for r in fates if r in own and r not in asked and not before and alike]
            for reason in missing:
                checks.absent(f"questions without a pair: {reason.replace('_', ' ')}", f"the rows give {fates[reason]}")
        check_drops(checks, rows, simple=alike and not before)
    if (table := page.table("source rows that could not be used")) is not None:
        for label, cell in table.rows:
            page.claim(label)
            checks.unchecked(f"source rows: {label.text}", cell, "what could not be used is not released")


def _control(checks: Checks, rows: Rows) -> None:
    page = checks.page
    table = page.table("", "zoo", "best single member")
    if table is None:
        return
    from dataset_builder.control import measure

    judge = reference_judge(rows.provenance, rows.judges())
    side = None
    if judge is not None:
        train = {row[0] for row in rows.all("SELECT question_id FROM questions WHERE split = 'train'")}
        answers = {question: found for question, found in rows.by_question.items() if question in train}
        try:
            side = measure(answers, judge, _rule(rows).get("min_margin", 0.0), rows.weights)
        except KitError:  # not one answer has a verdict by the reference
            side = None
    for label, zoo, single in table.rows:
        page.claim(label)
        value = side and (side.chosen_correct if label.text.startswith("chosen") else side.coverage)
        if judge is None:
            checks.unchecked(f"{label.text}, zoo", zoo, "no reference judge scored the answers")
        else:
            checks.number(f"{label.text}, zoo", zoo, value, tenth)
        why = "the single member's extra samples are not part of the dataset"
        if single.text != NOT_MEASURED:
            checks.unchecked(f"{label.text}, single member", single, why)


def _measured(checks: Checks, rows: Rows) -> None:
    table = checks.page.table("what the selection measured")
    if table is None:
        return checks.absent("what the selection measured", "the table is not there")
    from dataset_builder.selection.balance import length_report

    lengths = length_report(*rows.lengths())
    figures = {
        "chosen is the longer answer, share of pairs (equal lengths count half)": (lengths["longer"], tenth),
        "length against being chosen, Spearman": (lengths["spearman"], two),
        "disagreement of the judges (0–1), mean": (rows.disagreement(), two),
    }
    for label, cell in table.rows:
        known = figures.get(label.text)
        if known is not None:
            checks.page.claim(label)
        if known is not None and cell.text != NOT_MEASURED:
            checks.number(label.text, cell, *known, slack=_STORED)
        elif any(letter.isdigit() for letter in cell.text):
            checks.unchecked(label.text, cell, "other data than the released rows went into it")


def _diversity(checks: Checks, rows: Rows) -> None:
    table = checks.page.table("member", "member alone")
    if table is None:
        return
    from dataset_builder.selection.diversity import QUESTIONS, Diversity
    from dataset_builder.selection.scored import read_scored

    found: dict = {}
    if rows.counts["questions"] <= QUESTIONS:
        diversity = Diversity(rows.counts["questions"])
        for path in sorted((rows.folder / "responses").glob("*.parquet")):
            for scored in read_scored(path):
                diversity.add(scored)
        found = diversity.report()["members"]
    for name, *cells in table.rows:
        checks.page.claim(name)
        for side, cell in zip(("member", "zoo"), cells):
            if found:
                value = found.get(name.text, {}).get(side, {}).get("distinct_2")
                checks.number(f"distinct word pairs, {name.text}, {side}", cell, value, two, slack=_STORED)
            else:
                checks.unchecked(f"distinct word pairs, {name.text}, {side}", cell, "measured on a part of the rows")


def _end(checks: Checks, rows: Rows) -> None:
    page = checks.page
    if found := page.find(r"^Licences? of the clips: (.+?)\. "):
        names = rows.all("SELECT DISTINCT license FROM questions WHERE coalesce(license, '') <> '' ORDER BY 1")
        checks.text("licences of the clips", page.group(found), ", ".join(name for (name,) in names))
    if found := page.find(r"^(?:.*\. )?Fingerprint of this build: `(\w+)`"):
        why = "a hash over the build's config, models and judges, not over rows"
        checks.unchecked("fingerprint of the build", page.group(found), why)
    if found := page.find(r"Question types: (.+?)\."):
        kinds = rows.all("SELECT DISTINCT question_type FROM questions WHERE question_type <> '' ORDER BY 1")
        checks.text("question types", page.group(found), ", ".join(kind for (kind,) in kinds))
