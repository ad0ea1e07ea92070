"""The numbers behind an audit's findings, video by video: ``audit_rows.json``, from which anybody computes them again.

    {"format": "mmaip-v-audit-rows/1",
     "findings": [{"probe": "length", "name": "padded_wrong", "label": "…", "kind": "bias", "bounds": [-1.0, 1.0],
                   "missing": 0, "videos": ["91ab…", …], "values": [0.0, …]}, …]}

One entry of ``videos`` and ``values`` stands for one question; which number of it that is, the label says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dataset_builder.errors import KitError
from eval.audit.findings import Finding, Measure, Values, finding, with_p_values
from eval.results import read_json, write_text

NAME, FORMAT = "audit_rows.json", "mmaip-v-audit-rows/1"


def row_of(probe: str, measure: Measure) -> dict[str, Any]:
    """What is kept of a measure."""
    bounds = None if measure.bounds is None else list(measure.bounds)
    return {
        **{"probe": probe, "name": measure.name, "label": measure.label, "kind": measure.kind, "bounds": bounds},
        **{"missing": measure.values.missing, "videos": measure.values.clusters, "values": measure.values.values},
    }


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write the rows; the same audit gives the same bytes."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    return write_text(path, f'{{"format": "{FORMAT}", "findings": [\n{lines}\n]}}\n')


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read what :func:`write_rows` wrote.

    Raises:
        KitError: there is no such file, or it is something else.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise KitError(f"{path}: holds no rows of an audit (expected format '{FORMAT}')")
    return content["findings"]


def findings_of(rows: Sequence[Mapping[str, Any]], draws: int, seed: int) -> list[Finding]:
    """The findings, computed from the rows.

    Args:
        rows: of all findings of an audit, in its order.
        draws: of the tests.
        seed: of the draws.

    Raises:
        KitError: a row is not as it is written.
    """
    found = []
    for number, row in enumerate(rows, 1):
        try:
            values = Values([float(v) for v in row["values"]], list(row["videos"]), row["missing"])
            bounds = None if row["bounds"] is None else tuple(row["bounds"])
            measure = Measure(row["name"], row["label"], row["kind"], values, bounds)
            found.append((finding(row["probe"], measure), values))
        except (KeyError, TypeError, ValueError) as error:
            raise KitError(f"{NAME}: finding {number}: {type(error).__name__}: {error}") from None
    return with_p_values(found, draws, seed)
