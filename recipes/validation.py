"""The rows behind a choice on validation: every answer with its verdict, every held-out pair with its margin.

A round's alpha is chosen by an accuracy and a share of pairs; without the rows they are numbers that a reader has to
believe. ``validation.json`` of a round lets anybody compute them again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from eval.results import write_text

FILE = "validation.json"  # in a round's folder


class ValidationRows:
    """Rows of one choice, by alpha (0.0 where nothing was extrapolated)."""

    def __init__(self) -> None:
        self._answers: dict[str, dict[str, Any]] = {}
        self._pairs: list[dict[str, Any]] = []

    def add_answers(self, alpha: float, rows: Iterable[dict[str, Any]]) -> None:
        """Take the rows of `eval.results.Results`: ``question_id, video_id, response, correct`` (0, 1 or None)."""
        for row in rows:
            kept = self._answers.setdefault(
                row["question_id"], {"question_id": row["question_id"], "video_id": row["video_id"], "by_alpha": {}}
            )
            kept["by_alpha"][str(float(alpha))] = {"response": row["response"], "correct": row["correct"]}

    def add_margins(self, alpha: float, question_ids: Sequence[str], margins: Sequence[float]) -> None:
        """Take log-probabilities of chosen minus rejected [N], nats a sequence, of held-out pairs in their order."""
        if not self._pairs:
            self._pairs = [{"question_id": name, "margin": {}} for name in question_ids]
        for kept, margin in zip(self._pairs, margins, strict=True):
            # seven digits: a number that is not zero stays so, and the last bits differ between machines
            kept["margin"][str(float(alpha))] = float(f"{margin:.7g}") if abs(margin) < float("inf") else None

    def save(self, path: Path) -> None:
        """Write the rows as JSON."""
        content = {"answers": list(self._answers.values()), "pairs": self._pairs}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(content, ensure_ascii=False, indent=None, separators=(",", ":")) + "\n")


def accuracy_at(content: dict[str, Any], alpha: float) -> float | None:
    """Share of answers with a verdict that are right, 0–1; None where no answer was judged at this alpha."""
    said = [row["by_alpha"].get(str(float(alpha)), {}).get("correct") for row in content.get("answers") or []]
    said = [value for value in said if value is not None]
    return sum(said) / len(said) if said else None


def preference_accuracy_at(content: dict[str, Any], alpha: float) -> float | None:
    """Share of held-out pairs whose chosen answer is likelier, 0–1; None where they were not scored at this alpha."""
    pairs = content.get("pairs") or []
    if not pairs or str(float(alpha)) not in pairs[0]["margin"]:
        return None
    margins = [row["margin"][str(float(alpha))] for row in pairs]
    return sum(margin is not None and margin > 0 for margin in margins) / len(margins)
