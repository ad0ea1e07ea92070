"""What training chose and wrote down, in a model's card.

Choices on validation are computed again from ``results/validation/ARM-round-N.json``, which hold every answer with its
verdict and every held-out pair with its margin. The rest no released row can confirm, so it is compared with the log
alone: ``arms.json`` and ``training_args.yaml`` hold what was asked for and what was logged, ``extrapolation.json`` what
the last round's extrapolation measured. A number that differs from them is wrong; one that does not is named as not
checkable.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import yaml

from cards.stage_log import read_json
from cards.text import alphas, count, number, rate, share, short
from cards.verify.checks import Checks
from cards.verify.page import Page, Span, Table
from recipes.validation import accuracy_at, preference_accuracy_at

LOGGED = "logged while training; no row of the release holds it"
WEIGHTS = "computed from weights while training; no row of the release holds it"


def check_logged(checks: Checks, name: str, span: Span, logged: str | None, why: str) -> None:
    """Say of a number that no row can confirm it, or that it is not even what was written down.

    Args:
        checks: of the card.
        name: of the number.
        span: where it stands.
        logged: how it would read as it was written down; empty or None where nothing was.
        why: no row can confirm it.
    """
    if logged and " ".join(span.text.split()) != logged:
        checks.text(name, span, logged)
    else:
        checks.unchecked(name, span, why)


class Log:
    """What a model's repo holds of its training."""

    def __init__(self, folder: Path, arm: str):
        args = folder / "training_args.yaml"
        self.training = (yaml.safe_load(args.read_text(encoding="utf-8")) if args.is_file() else None) or {}
        self.table = read_json(folder / "arms.json", {})
        self.arms = self.table.get("arms") or {}
        self.arm = self.arms.get(arm) or {}
        self.rounds = self.training.get("rounds") or []
        self.moved = read_json(folder / "extrapolation.json", {})
        adapter = read_json(folder / "adapter" / "adapter_config.json") or read_json(folder / "adapter_config.json")
        self.adapter = adapter if adapter and adapter.get("peft_type") else None
        self.rows = folder / "results" / "validation"
        self.name = arm

    def validation(self, arm: str, number: int) -> dict:
        """The rows behind the choice of a round of an arm; empty where they are not released."""
        name = f"{arm}-round-{number}.json" if number else f"{arm}.json"
        return read_json(self.rows / name, {})


def check_training(checks: Checks, folder: Path, arm: str) -> None:
    """Every table and sentence about training."""
    log = Log(folder, arm)
    _settings(checks, log)
    _rounds(checks, log)
    _curves(checks, log)
    _arms(checks, log)
    _modules(checks, log)
    _adapters(checks, log)
    _sentences(checks, log)


def _settings(checks: Checks, log: Log) -> None:
    """Settings are what was asked for: the record of them is what the card has to say."""
    from cards.model_card import shown_settings

    table = checks.page.table("setting", "value")
    if table is None:
        return
    known = dict(shown_settings(log.training.get("arguments") or {}))
    for name, cell in table.rows:
        checks.page.claim(name)
        if name.text in known:
            checks.text(f"setting: {name.text}", cell, known[name.text])
        elif known:
            checks.value("settings that training_args.yaml holds", name.text, "no such setting")
        else:
            checks.unchecked(f"setting: {name.text}", cell, "a setting; training_args.yaml does not hold it")


def _rounds(checks: Checks, log: Log) -> None:
    forms = {
        "steps": ("steps", short),
        "pairs": ("pairs", count),
        "learning rate": ("learning_rate", rate),
        "alpha": ("alpha", short),
        "validation accuracy": ("validation_accuracy", share),
        "distance": ("distance", lambda value: number(value, 2)),
    }
    table = checks.page.table("round", "steps")
    rows = []
    for place in range(len(table.rows) if table else 0):
        each = log.rounds[place] if place < len(log.rounds) else {}
        texts = {head: form(each[key]) for head, (key, form) in forms.items() if each.get(key) is not None}
        if content := log.validation(log.name, place + 1):
            texts["validation accuracy"] = share(accuracy_at(content, each.get("alpha") or 0.0))
        rows.append({"round": str(place + 1), **texts})
    held = {"validation accuracy"} if rows and all(log.validation(log.name, n + 1) for n in range(len(rows))) else set()
    _compare(checks, table, rows, "rounds", LOGGED, held)


def _curves(checks: Checks, log: Log) -> None:
    table = checks.page.table("round", "alpha ")
    if table is None:
        return
    curves, chosen = log.arm.get("alpha_curves") or [], log.arm.get("alpha") or []
    if log.rounds:
        curves, chosen = ([each.get(key) for each in log.rounds] for key in ("alpha_curve", "alpha"))
    checks.page.claim(*table.head)
    tried = sorted({point["alpha"] for curve in curves for point in curve or []})
    if tried:
        checks.value("alphas tried", [h.text for h in table.head[1:]], [f"alpha {short(alpha)}" for alpha in tried])
    rows = []
    for place in range(len(table.rows)):
        texts = {"round": str(place + 1)}
        content = log.validation(log.name, place + 1)
        for point in (curves[place] or []) if place < len(curves) else []:
            if content:
                again = {"accuracy": accuracy_at, "preference_accuracy": preference_accuracy_at}
                point = {"alpha": point["alpha"], **{key: at(content, point["alpha"]) for key, at in again.items()}}
            bold = "**" if place < len(chosen) and point["alpha"] == chosen[place] else ""
            judged = "–" if point.get("accuracy") is None else share(point["accuracy"])
            pairs = point.get("preference_accuracy")
            after = "" if pairs is None else f" ({share(pairs)})"
            texts[f"alpha {short(point['alpha'])}"] = f"{bold}{judged}{bold}{after}"
        rows.append(texts)
    why = "verdicts on validation questions and log-probs of held-out pairs were not kept row by row"
    kept = rows and all(log.validation(log.name, place + 1) for place in range(len(rows)))
    _compare(checks, table, rows, "alpha curve", why, {head.text for head in table.head[1:]} if kept else ())


def _arms(checks: Checks, log: Log) -> None:
    forms = {
        "steps": ("steps", count),
        "extra samples": ("samples", count),
        "judge calls": ("judge_calls", count),
        "learning rate": ("learning_rate", rate),
        "alpha per round": ("alpha", alphas),
        "validation": ("validation_accuracy", share),
        "distance": ("distance", lambda value: number(value, 2)),
    }
    table = checks.page.table("arm", "steps")
    rows, held = [], {"validation"}
    for cells in table.rows if table else []:
        name = cells[0].text.strip("*")
        arm = log.arms.get(name)
        texts = {} if arm is None else {head: form(arm.get(key)) for head, (key, form) in forms.items()}
        steps = (arm or {}).get("alpha") or []
        # The base has rows of its own; an arm that kept no round is the base.
        content = log.validation(name, len(steps) or (0 if name == "base" else 1))
        if content:
            texts["validation"] = share(accuracy_at(content, steps[-1] if steps else 0.0))
        elif arm is not None and arm.get("validation_accuracy") is not None:
            held = set()
        rows.append(texts)
    _compare(checks, table, rows, "what each arm took", LOGGED, held)


def _modules(checks: Checks, log: Log) -> None:
    forms = {
        "weights": ("weights", count),
        "norm before": ("norm", lambda value: number(value, 2)),
        "trained": ("trained", number),
        "moved": ("moved", number),
        "moved / norm": ("relative", lambda value: share(value, 2)),
    }
    table, rows = checks.page.table("module", "weights"), []
    kinds = {f"`{name}`": values for name, values in (log.moved.get("kinds") or {}).items()}
    for cells in table.rows if table else []:
        values = log.moved.get("all") if cells[0].text == "all" else kinds.get(cells[0].text)
        rows.append({head: form((values or {}).get(key)) for head, (key, form) in forms.items()} if values else {})
    _compare(checks, table, rows, "how far modules moved", WEIGHTS)
    if found := checks.page.find(r"<summary>(\d+) kinds of modules"):
        shown = sum(cells[0].text != "all" for cells in table.rows) if table else 0
        checks.number("kinds of modules, as listed below", checks.page.group(found), shown, count)


def _adapters(checks: Checks, log: Log) -> None:
    table, rows = checks.page.table("round", "rank"), []
    for place in range(len(table.rows) if table else 0):
        texts = {"round": str(place + 1)}
        if log.adapter and place == len(table.rows) - 1:  # those of other rounds lie under their tags
            ranks = sorted({log.adapter.get("r"), *(log.adapter.get("rank_pattern") or {}).values()} - {None})
            texts |= {"rank": ", ".join(map(str, ranks)), "lora_alpha": short(log.adapter.get("lora_alpha"))}
        rows.append(texts)
    _compare(checks, table, rows, "adapters", "a property of weights, which are not downloaded")


def _sentences(checks: Checks, log: Log) -> None:
    page, last = checks.page, (log.rounds or [{}])[-1]
    cosine = ((log.moved.get("realised") or {}).get("added") or {}).get("cosine")
    for pattern, name, logged, why in (
        (r"optimizer steps \(([\d,]+)\)", "optimizer steps of an arm", _said(log.table.get("steps"), count), LOGGED),
        (r"\(weight ([\d.]+)\)", "weight of the SFT term", _said(log.arm.get("sft_weight"), short), "a setting"),
        (r"α (\S+) included", "alpha of the released round", _said(last.get("alpha"), short), LOGGED),
        (r"has cosine (\S+) with", "cosine of the saved step", _said(cosine, lambda v: number(v, 4)), WEIGHTS),
    ):
        if found := page.find(pattern):
            check_logged(checks, name, page.group(found), logged, why)
    base = log.training.get("base_before_bias") or {}
    if found := page.find(r"Accuracy of the base before the bias: (.+?)\.(?=$| Question)"):
        text = ", ".join(f"{kind} {share(value)}" for kind, value in base.items())
        why = "of a model that is not released"
        check_logged(checks, "accuracy of the base before the bias", page.group(found), text, why)


def _said(value, form) -> str | None:
    return None if value is None else form(value)


def _compare(
    checks: Checks,
    table: Table | None,
    rows: Sequence[dict[str, str]],
    name: str,
    why: str,
    held: Collection[str] = (),
) -> None:
    """Compare a table cell by cell with released rows or the log, and name the latter's columns as not checkable.

    Args:
        checks: of the card.
        table: None where the card has none.
        rows: how the cells read as they were logged, by the beginning of their heads; what was not logged is missing.
        name: of the table.
        why: no row can confirm it.
        held: heads of the columns that released rows gave.
    """
    if table is None:
        return
    page: Page = checks.page
    for cells, texts in zip(table.rows, rows):
        page.claim(*cells)
        for head, cell in zip(table.head, cells):
            if texts.get(head.text) and (head.text in held or cell.text != texts[head.text]):
                checks.text(f"{name}: {head.text}, {cells[0].text}", cell, texts[head.text])
    for place, head in enumerate(table.head[1:], 1):
        if head.text in held:
            continue
        shown = [row[place].text for row in table.rows if place < len(row)]
        if any(letter.isdigit() for cell in shown for letter in cell):
            checks.unchecked(f"{name}: {head.text}", f"{len(shown)} rows", why)
