"""Prediction files of LLaVA-Hound's shape as results without verdicts, to be judged without asking the model again.

A row is ``{"id", "modal_path", "query", "answer", "model_prediction": {"status", "message"}}``; other fields are
ignored. ``modal_path`` names the video, by which statistics cluster. Captions, which the `hound` judge reads, stand in
the rows or in the test file of the same shape (`webvid.qa.jsonl` and so on).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset_builder.errors import KitError, RowError
from eval.results import Results, benchmark_fingerprint
from eval.verdicts import failed

_MARK = "<video>"
NOT_JUDGED = "not judged yet"


def read_predictions(
    path: str | Path, captions: str | Path | None = None, name: str | None = None
) -> tuple[Results, list[RowError]]:
    """Read a prediction file (JSONL, or one JSON array).

    Args:
        path: the file.
        captions: JSONL with ``id`` and ``caption``, such as the test file the predictions were made from.
        name: what tables call the model; the file's name by default.

    Returns:
        Results whose rows have no verdict yet, and one error for each row that could not be used.

    Raises:
        KitError: the file is missing or holds no usable row.
    """
    known = _captions(captions) if captions else {}
    rows, errors, seen = [], [], set()
    for number, content in _rows(path):
        try:
            row = _row(path, number, content, known)
            if row["question_id"] in seen:
                raise RowError(path, number, "id", f"{row['question_id']!r} stands in an earlier row too; rename one")
        except RowError as error:
            errors.append(error)
            continue
        seen.add(row["question_id"])
        rows.append(row)
    if not rows:
        raise KitError(f"{path}: holds no usable prediction" + (f"; the first problem: {errors[0]}" if errors else ""))
    rows.sort(key=lambda row: (row["video_id"], row["question_id"]))
    fingerprint = benchmark_fingerprint((r["question_id"], r["video_id"], r["question"], r["answers"]) for r in rows)
    title = name or Path(path).stem
    return Results(title, title, "", dataset=Path(path).name, dataset_fingerprint=fingerprint, rows=rows), errors


def _row(path: str | Path, number: int, content: Any, captions: dict[str, str]) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise RowError(path, number, None, "is not a JSON object")
    for field in ("modal_path", "query"):
        if not isinstance(content.get(field), str) or not content[field].strip():
            raise RowError(path, number, field, "is missing or not text")
    if not isinstance(content.get("id"), str | int) or isinstance(content.get("id"), bool):
        raise RowError(path, number, "id", "is missing or neither text nor a whole number")
    answer, said = content.get("answer"), content.get("model_prediction")
    if not isinstance(answer, str):
        raise RowError(path, number, "answer", "is missing or not text")
    if not isinstance(said, dict) or "message" not in said:
        raise RowError(path, number, "model_prediction", 'must be an object {"status": …, "message": …}')
    caption = content.get("caption", captions.get(str(content["id"])))
    if caption is not None and not isinstance(caption, str):
        raise RowError(path, number, "caption", "must be text")
    good = said.get("status", "success") == "success" and isinstance(said["message"], str)
    problem = NOT_JUDGED if good else f"the prediction has status {said.get('status')!r}: {said['message']}"
    return {
        "question_id": str(content["id"]),
        "video_id": content["modal_path"],
        "question_type": str(content.get("type") or content.get("task") or ""),
        "question": content["query"].replace(_MARK, "").strip(),
        "answers": [answer],
        "response": said["message"] if good else None,
        "caption": caption,
        **failed(problem),
    }


def _captions(path: str | Path) -> dict[str, str]:
    found = {}
    for number, row in _rows(path):
        if not isinstance(row, dict) or "id" not in row or not isinstance(row.get("caption"), str):
            raise RowError(path, number, "caption", "a row of a captions file needs an id and a caption (text)")
        found[str(row["id"])] = row["caption"]
    return found


def _rows(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Line number (or place in an array) and content; a line that is no JSON comes as None."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise KitError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise KitError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None
    if text.lstrip().startswith("["):
        try:
            yield from enumerate(json.loads(text), 1)
            return
        except json.JSONDecodeError as error:
            raise KitError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from None
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError:
                yield number, None
