"""What a dataset card measures of answers, scores and pairs, against the rows: the rules for `cards.dataset_stats`."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial

from cards import dataset_stats as stats
from cards.dataset_samples import sample_rows, shown
from cards.dataset_videos import videos_held
from cards.text import NOT_MEASURED, count, interval, number, share
from cards.verify.checks import Checks
from cards.verify.page import Span
from cards.verify.rows import Rows
from dataset_builder.judges.base import settings_hash

two = partial(number, digits=2)
_LEAKS = "the rows that stood in an evaluation set, and the set itself, are not released"
_GONE = "what was dropped is not released"


def check_sources(checks: Checks, rows: Rows) -> None:
    """The table of sources and licences, and how many clips come as ids only."""
    page, held = checks.page, videos_held(rows.folder)
    known = {(s["source"], s["license"]): s for s in stats.sources(rows.questions, rows.pairs, held)}
    table = page.table("source of the clips", "licence")
    if table is None:
        return checks.absent("table of sources and licences", "it is not there")
    there = [(row[0].text, row[1].text) for row in table.rows]
    checks.value("sources and licences", sorted(there), sorted(known))
    for source, license, *cells in table.rows:
        page.claim(source, license)
        found = known.get((source.text, license.text), {})
        for key, cell in zip(("clips", "questions", "pairs", "embedded", "ids_only", "elsewhere"), cells):
            checks.number(f"{key.replace('_', ' ')} of {source.text}, {license.text}", cell, found.get(key), count)
    null = list(held.values()).count(False)
    said = page.find(r"^(\S+) of the clips in `preferences` and `benchmark` come as ids")
    if said is not None:
        checks.number("clips that come as ids", page.group(said), null, count)
    elif null:
        checks.absent("clips that come as ids", f"{null} videos are null, and the card does not say how to get them")


def check_coverage(checks: Checks, rows: Rows) -> None:
    """Right answers among so many."""
    page = checks.page
    found = stats.coverage(rows.train_answers, stats.reference_judge(rows.provenance, rows.judges()))
    if said := page.find(r"^Share of the (\S+) training questions with at least one right answer"):
        checks.number("questions of the coverage", page.group(said), (found or {}).get("questions"), count)
    table = page.table("answers to a question")
    if table is None:
        return
    steps = (found or {}).get("steps", [])
    for cell, step in zip(table.head[1:], [*steps, *[None] * len(table.head)]):
        checks.text("coverage: answers to a question", cell, str(step))
    zoo = (found or {}).get("zoo", [])
    lines = {"zoo": [share(point.mean) for point in zoo]}
    lines["zoo, 95 % interval"] = [interval([point.low, point.high]) for point in zoo]
    for name, curve in (found or {}).get("members", {}).items():
        lines[name] = [share(point.mean) for point in curve]
    checks.value("members in the table of coverage", sorted(row[0].text for row in table.rows), sorted(lines))
    for label, *cells in table.rows:
        page.claim(label)
        for cell, value, step in zip(cells, [*lines.get(label.text, []), *["–"] * len(cells)], steps):
            checks.text(f"coverage of {label.text} with {step}", cell, value)


def check_criteria(checks: Checks, rows: Rows) -> None:
    """Mean scores by member and criterion."""
    table = checks.page.table("mean score (0–1)")
    if table is None:
        return
    means = stats.criterion_means(rows.answers)
    columns = {name for by_name in means.values() for name in by_name}
    checks.page.claim(*table.head)
    checks.value("criteria in the table", sorted(cell.text for cell in table.head[1:]), sorted(columns))
    checks.value("members in the table of criteria", sorted(row[0].text for row in table.rows), sorted(means))
    for label, *cells in table.rows:
        checks.page.claim(label)
        for head, cell in zip(table.head[1:], cells):
            value = means.get(label.text, {}).get(head.text)
            checks.number(f"{head.text} of {label.text}", cell, value, two)


def check_length(checks: Checks, rows: Rows) -> None:
    """Length against choice, and against every judge's score."""
    page, found = checks.page, stats.length_of_pairs(rows.pairs) or {}
    said = page.find(
        r"^The chosen answer is the longer one in (.+?) of the pairs \(95 % interval (.+?)\), the shorter one in"
        r" (.+?) \((.+?)\) and as long in (.+?);"
    )
    if said is not None:
        for place, name in ((1, "longer"), (3, "shorter"), (5, "equal")):
            value = found[name].mean if found else None
            checks.number(f"chosen is {name}, share of pairs", page.group(said, place), value, share)
        for place, name in ((2, "longer"), (4, "shorter")):
            ends = [found[name].low, found[name].high] if found else None
            checks.text(f"chosen is {name}, interval", page.group(said, place), interval(ends))
    table = page.table("judge", "length of an answer")
    if table is not None:
        known = stats.length_of_judges(rows.answers)
        checks.value("judges in the table of lengths", sorted(row[0].text for row in table.rows), sorted(known))
        for label, cell in table.rows:
            page.claim(label)
            checks.number(f"length against score, {label.text}", cell, known.get(label.text), two)


def check_agreement(checks: Checks, rows: Rows) -> None:
    """How far judges agree, and whether one of them judged itself."""
    page = checks.page
    known = {f"{pair['a']}, {pair['b']}": pair for pair in stats.judge_agreement(rows.answers)}
    table = page.table("judges", "answers", "alpha")
    if table is not None or known:
        there = [row[0].text for row in table.rows] if table is not None else []
        checks.value("pairs of judges", sorted(there), sorted(known))
    for label, *cells in table.rows if table is not None else []:
        page.claim(label)
        pair = known.get(label.text, {})
        checks.number(f"answers of {label.text}", cells[0], pair.get("answers"), count)
        checks.number(f"alpha of {label.text}", cells[1], pair.get("alpha"), two)
        checks.text(f"interval of alpha, {label.text}", cells[2], f"{two(pair.get('low'))} to {two(pair.get('high'))}")
        checks.number(f"Spearman of {label.text}", cells[3], pair.get("rho"), two)
    own = {(entry["judge"], entry["member"]): entry for entry in stats.self_judged(rows.answers)}
    form = (
        r"Judge (.+?) is the model of member (.+?) \(`[^`]+`\)\. It gives that member's answers (.+?) on average and"
        r" those of the others (.+?); the other judges give them (.+?) and (.+?)\.$"
    )
    said = list(re.finditer(form.replace(" ", r"\s+"), page.body, re.MULTILINE))
    checks.value("judges that are members", sorted((each[1], each[2]) for each in said), sorted(own))
    for each in said:
        entry = own.get((each[1], each[2]), {})
        for place, key in enumerate(("own", "rest", "others_own", "others_rest"), 3):
            name = f"self-preference of {each[1]}: {key.replace('_', ' ')}"
            checks.number(name, page.group(each, place), entry.get(key), two)
    if found := page.find(r"^- (\S+) scores are missing:"):
        failed = sum(judge["errors"] for judge in rows.judges().values())
        checks.number("scores that are missing", page.group(found), failed, count)


def check_samples(checks: Checks, rows: Rows) -> None:
    """The sample pairs: which they are, every text, every score."""
    page = checks.page
    tables = [table for table in page.tables if table.head[0].text == "sample"]
    kinds = {row["question_id"]: row["question_type"] or "" for row in rows.questions}
    answers = {row["response_id"]: row for row in rows.answers}
    samples = sample_rows(rows.pairs, kinds, answers)
    checks.value("sample pairs", len(tables), len(samples))
    heads = [
        found for found in re.finditer(r"^Question `([^`]+)`(?:, type (.+?))?(?:, margin (\S+))?:$", page.body, re.M)
    ]
    shown_ids = [found[1] for found in heads]
    checks.value("questions of the sample pairs", shown_ids, [s["pair"]["question_id"] for s in samples])
    for place, (table, sample) in enumerate(zip(tables, samples), 1):
        page.claim(*table.head)
        if place <= len(heads) and heads[place - 1][3] is not None:
            margin = page.group(heads[place - 1], 3)
            checks.number(f"margin of sample {place}", margin, sample["pair"]["margin"], two)
        if place <= len(heads) and heads[place - 1][2] is not None:
            checks.text(f"type of sample {place}", page.group(heads[place - 1], 2), sample["kind"] or "")
        expected = {row["side"]: row for row in sample["rows"]}
        for label, text, *cells in table.rows:
            name = f"{label.text} of sample {place}"
            if label.text in ("question", "reference"):
                known = sample["pair"]["question" if label.text == "question" else "answer"]
                checks.text(name, text, _unescaped(shown(known)))
                continue
            row = expected.get(label.text)
            if row is None:
                checks.absent(name, "no such row")
                continue
            checks.text(name, text, _unescaped(row["text"]))
            checks.text(f"model of {name}", cells[0], row["model"])
            checks.number(f"score of {name}", cells[1], row["score"], two)
            for head, cell, value in zip(sample["judges"], cells[2:], row["scores"]):
                checks.text(f"{head} of {name}", cell, value)


def _unescaped(text: str) -> str:
    return text.replace("\\|", "|")  # as a page gives its cells


def check_prompts(checks: Checks, rows: Rows) -> None:
    """What judges were asked: the card shows the settings that the rows' hashes are of."""
    page = checks.page
    known = {}
    for judge in rows.provenance.get("judges") or []:
        for key, settings in (judge.get("settings") or {}).items():
            known[key] = settings or {}
    in_rows = {key for judge in rows.judges().values() for key in judge["settings"] if key}
    for found in re.finditer(r"^Settings `(\w+)`:$", page.body, re.MULTILINE):
        key = found[1]
        made = settings_hash(known[key]) if known.get(key) else NOT_MEASURED
        checks.text("settings of a judge (hash)", page.group(found), made if made in in_rows else "not of the rows")
    for settings in known.values():
        for name, text in settings.items():
            if name in ("system", "prompt", "prompt_with_references", "example") and text:
                checks.value(f"{name.replace('_', ' ')} of a judge is shown", text.strip() in page.body, True)
    for found in re.finditer(r"^<details><summary>(?:What|How) .+</summary>$", page.body, re.MULTILINE):
        page.claim(page.group(found, 0))  # names, and kinds of models


def check_drops(checks: Checks, rows: Rows, simple: bool) -> None:
    """Answers that were not compared, pairs that were dropped, and what evaluation sets took out.

    Args:
        checks: of the card.
        rows: of the dataset.
        simple: whether no question was taken out before its answers were looked at.
    """
    from dataset_builder.selection.pairs import select_pair

    page = checks.page
    table = page.table("answers that were not compared")
    if table is not None:
        excluded: Counter = Counter()
        splits = {row["question_id"]: row["split"] for row in rows.questions}
        for question, answers in rows.by_question.items() if simple else ():
            if splits.get(question) != "test":
                excluded.update(select_pair(question, answers, weights=rows.weights).excluded)
        for label, cell in table.rows:
            page.claim(label)
            name = f"answers not compared: {label.text}"
            if simple:
                checks.number(name, cell, excluded.get(label.text.replace(" ", "_"), 0), count)
            else:
                checks.unchecked(name, cell, "some of their questions were taken out first")
    if (table := page.table("candidate pairs that were dropped")) is not None:
        for label, cell in table.rows:
            page.claim(label)
            checks.unchecked(f"candidate pairs: {label.text}", cell, _GONE)
    if (table := page.table("evaluation set", "rows of the set")) is not None:
        for label, *cells in table.rows:
            page.claim(label)
            for head, cell in zip(table.head[1:], cells):
                _unless_words(checks, f"decontamination, {label.text}: {head.text}", cell, _LEAKS)


def _unless_words(checks: Checks, name: str, cell: Span, why: str) -> None:
    if any(letter.isdigit() for letter in cell.text):
        checks.unchecked(name, cell, why)
