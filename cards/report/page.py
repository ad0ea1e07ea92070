"""The report as a page: what it says comes from the run folder, and it needs nothing but itself.

Nothing is loaded from anywhere, and the page's own policy forbids it: figures are inline SVG whose neutral colours are
the page's own (so they follow light and dark), frames and clips are data URIs, the one script is in the page and named
in the policy by its hash. What models wrote reaches the page as escaped text or as JSON that the script shows as text.
Without a script everything is there but the browser of pairs.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from pathlib import Path

from cards.arm_notes import arm_context
from cards.dataset_card import find_setting, margin_summary
from cards.dataset_stats import truth_readers
from cards.figures import ALT
from cards.model_card import accuracy_by_type
from cards.report.drawing import Drawing, draw, page_data
from cards.report.players import REASON_WORDS, REASONS, ClipFinder, sample_pairs, shelve
from cards.run_folder import Run
from cards.style import BLUE, FULL, GRID, HALF, INK, MUTED, PAPER, arm_of
from cards.text import environment

COLOURS = {INK: "--ink", MUTED: "--muted", GRID: "--line", BLUE: "--blue", PAPER: "--card"}
WIDE = 72 * (HALF + FULL) / 2  # points; a figure that is wider gets a row of its own
MOST_PAIRS = 2_000  # pairs to browse
CLIP_BYTES = 24_000_000  # video in the page, before base64 makes it a third larger
SAMPLES = 6  # pairs shown with their frames
TEMPLATES = Path(__file__).parents[1] / "templates"
SCRIPTS = ("report.js", "report_browser.js")


def write_report(run: Run | str | Path, most_pairs: int = MOST_PAIRS, clip_bytes: int = CLIP_BYTES) -> Path:
    """Render the report and write it into the run folder.

    Args:
        run: the run, or its folder.
        most_pairs: pairs to browse, at most.
        clip_bytes: bytes of video in the page, at most.

    Returns:
        The path of ``report.html``.
    """
    run = run if isinstance(run, Run) else Run(Path(run))
    path = run.folder / "report.html"
    path.write_text(render_report(run, most_pairs, clip_bytes), encoding="utf-8")
    return path


def render_report(run: Run, most_pairs: int = MOST_PAIRS, clip_bytes: int = CLIP_BYTES) -> str:
    """The page as text; the same run gives the same bytes."""
    arm = run.release_arm
    figures = {name: inline_svg(run.folder / "figures" / f"{name}.svg", name) for name in ALT}
    figures = {name: svg for name, svg in figures.items() if svg}
    drawing = draw(run, most_pairs)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            run=run,
            name=run.info.get("name") or run.folder.name,
            seed=run.info.get("seed"),
            counts=run.counts,
            arm=arm,
            arms=run.arms,
            released=run.arms.get(arm, {}),
            base=run.arms.get("base", {}),
            rounds=run.rounds(arm) if arm else [],
            by_type=accuracy_by_type(run, arm) if arm else {},
            training=run.training,
            models=run.measured("models"),
            control=run.measured("control"),
            drops=run.drops,
            rejected=run.measured("dataset").get("rejected") or {},
            zoo=run.zoo,
            judges=run.judges,
            split_rows=run.split_rows,
            margin=margin_summary(run.pairs),
            rule=run.provenance.get("pairs") or {},
            min_margin=find_setting(run.provenance, "min_margin"),
            fingerprint=run.info.get("dataset_fingerprint"),
            figures=figures,
            wide={name for name, svg in figures.items() if _width(svg) > WIDE},
            spec=arm_of(arm or "base"),
            **browser_context(run, drawing, clip_bytes),
            **arm_context(run),
            toy=run.toy,
            truth_readers=truth_readers(run.provenance, [judge["name"] for judge in run.judges]),
        )
    )


def browser_context(run: Run, drawing: Drawing, clip_bytes: int) -> dict:
    """What the page needs to browse pairs.

    Args:
        run: the run.
        drawing: its pairs.
        clip_bytes: bytes of video in the page, at most.

    Returns:
        ``samples``; ``browse`` (what the page says of its pairs and players); ``pairs_json``, ``clips`` (base64),
        ``script`` and ``policy``, which are safe in the page as they are.
    """
    from markupsafe import Markup

    finder = ClipFinder(run, drawing)
    clips, shelves, reasons = shelve(finder, drawing.pairs, clip_bytes)
    data = {**page_data(drawing, shelves, reasons), "reasons": REASONS}
    script = "\n".join((TEMPLATES / name).read_text(encoding="utf-8") for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    without = Counter(reasons[pair["video_id"]] for pair in drawing.pairs if pair["video_id"] in reasons)
    return {
        "samples": sample_pairs(finder, drawing, SAMPLES),
        "browse": {
            "shown": len(drawing.pairs),
            "total": drawing.total,
            "players": len(drawing.pairs) - sum(without.values()),
            "clips": len(clips),
            "megabytes": f"{held:.1f}" if (held := sum(map(len, clips)) / 1e6) >= 0.1 else f"{held:.3f}",
            "limit": f"{clip_bytes / 1e6:g}",
            "without": {reason: without[reason] for reason in REASONS if without[reason]},
        },
        "REASON_WORDS": REASON_WORDS,
        "pairs_json": Markup(script_json(data)),
        "clips": [base64.b64encode(clip).decode() for clip in clips],
        "script": Markup(script),
        "policy": Markup(
            f"default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
            f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
        ),
    }


def script_json(value: object) -> str:
    """JSON that can stand in a ``<script>`` element: nothing in it can end the element or begin another.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


def inline_svg(path: Path, name: str) -> str | None:
    """An SVG file as an element for the page: colours from the page, ids unique on the page, no outside names.

    Args:
        path: what ``figures.py`` wrote.
        name: of the figure; its alternative text and the prefix of its ids come from it.

    Returns:
        The ``<svg>`` element, or None when the figure was not drawn.
    """
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups()  # points: 4/3 px each
    inside = text[text.index(">", text.index("<svg")) + 1 :]
    inside = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", inside, flags=re.DOTALL)
    inside = inside.replace("xlink:href", "href")
    for mark in ('id="', 'href="#', "url(#"):
        inside = inside.replace(mark, f"{mark}{name}-")
    for colour, variable in COLOURS.items():
        inside = inside.replace(colour, f"var({variable})")
    style = f"width:{float(width) * 4 / 3:.0f}px"
    return f'<svg role="img" aria-label="{ALT[name]}" viewBox="0 0 {width} {height}" style="{style}">{inside}'


def _width(svg: str) -> float:
    return float(re.search(r'viewBox="0 0 ([\d.]+) ', svg)[1])
