"""``report.html``: one self-contained page about a run, for a person with a laptop and a browser.

Nothing is loaded from anywhere: figures are inline SVG whose neutral colours are the page's own (so they follow light
and dark), frames are PNG data URIs, and there is no script.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from pathlib import Path

from cards.arm_notes import arm_context
from cards.dataset_card import find_setting, margin_summary
from cards.figures import ALT
from cards.model_card import accuracy_by_type
from cards.run_folder import Run
from cards.stage_log import read_json
from cards.style import BLUE, FULL, GRID, HALF, INK, MUTED, PAPER, arm_of
from cards.text import environment

COLOURS = {INK: "--ink", MUTED: "--muted", GRID: "--line", BLUE: "--blue", PAPER: "--card"}
WIDE = 72 * (HALF + FULL) / 2  # points; a figure that is wider gets a row of its own
SAMPLES = 6  # pairs shown with their frames
SAMPLE_FRAMES = 8
FRAME_SIDE = 96  # px, at least; small frames grow by a whole factor, so that pixels stay square and sharp


def write_report(run: Run | str | Path) -> Path:
    """Render the report and write it into the run folder.

    Returns:
        The path of ``report.html``.
    """
    run = run if isinstance(run, Run) else Run(Path(run))
    path = run.folder / "report.html"
    path.write_text(render_report(run), encoding="utf-8")
    return path


def render_report(run: Run) -> str:
    """The page as text; the same run gives the same bytes."""
    arm = run.release_arm
    figures = {name: inline_svg(run.folder / "figures" / f"{name}.svg", name) for name in ALT}
    figures = {name: svg for name, svg in figures.items() if svg}
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
            min_margin=find_setting(run.provenance, "min_margin"),
            fingerprint=run.info.get("dataset_fingerprint"),
            samples=sample_pairs(run),
            figures=figures,
            wide={name for name, svg in figures.items() if _width(svg) > WIDE},
            spec=arm_of(arm or "base"),
            **arm_context(run),
            toy="toy" in {(row.get("source") or "").split("-")[0] for row in run.questions},
            sees_truth=any(judge["name"].startswith("reference") for judge in run.judges),
        )
    )


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


def sample_pairs(run: Run, number: int = SAMPLES) -> list[dict]:
    """A few pairs for the eye: drawn by a hash and spread over question types, not picked for their looks.

    Args:
        run: the run.
        number: how many.

    Returns:
        Pairs with ``question_type``, ``frames`` (PNG data URIs with their second, empty when the clip is not at hand)
        and ``others`` (the remaining answers to the question, best first).
    """
    kinds = {row["question_id"]: row.get("question_type") or "" for row in run.questions}
    by_kind: dict[str, list[dict]] = {}
    for pair in sorted(run.pairs, key=lambda pair: hashlib.sha256(pair["question_id"].encode()).hexdigest()):
        by_kind.setdefault(kinds.get(pair["question_id"], ""), []).append(pair)
    drawn: list[dict] = []
    while len(drawn) < number and any(by_kind.values()):
        drawn += [by_kind[kind].pop(0) for kind in sorted(by_kind) if by_kind[kind]]
    drawn = drawn[:number]
    wanted = {pair["question_id"] for pair in drawn}
    videos = find_videos(run, wanted)
    answers: dict[str, list[dict]] = {}
    for row in run.responses:
        if row["question_id"] in wanted:
            answers.setdefault(row["question_id"], []).append(row)
    samples = []
    for pair in drawn:
        rows = answers.get(pair["question_id"], [])
        rows = sorted(rows, key=lambda row: (-(row["score"] if row["score"] is not None else -1), row["model"]))
        known = {row["response_id"]: row for row in rows}
        shown = (pair["response_id_chosen"], pair["response_id_rejected"])
        samples.append(
            {
                **pair,
                "question_type": kinds.get(pair["question_id"], ""),
                "frames": frame_images(videos.get(pair["question_id"])),
                "chosen": known.get(shown[0]),
                "rejected": known.get(shown[1]),
                "others": [row for row in rows if row["response_id"] not in shown],
            }
        )
    return samples


def find_videos(run: Run, question_ids: set[str]) -> dict[str, bytes | str]:
    """Clips of some pairs, by question id: their bytes, or the local copy of what the dataset may not carry."""
    import pyarrow.parquet as parquet

    found: dict[str, bytes | str] = {}
    for file in sorted((run.dataset / "preferences").glob("*.parquet")):
        columns, where = ["question_id", "video_id", "video"], [("question_id", "in", sorted(question_ids))]
        for row in parquet.read_table(file, columns=columns, filters=where).to_pylist():
            if row["video"] and row["video"].get("bytes"):
                found[row["question_id"]] = row["video"]["bytes"]
    if len(found) < len(question_ids):
        media = read_json(run.dataset.with_name(f".{run.dataset.name}-work") / "media.json", {})
        for row in run.rows("questions", ["question_id", "sha256"]):
            if row["question_id"] in question_ids - set(found) and row["sha256"] in media:
                found[row["question_id"]] = media[row["sha256"]]
    return found


def frame_images(video: bytes | str | None, number: int = SAMPLE_FRAMES) -> list[dict]:
    """Frames of a clip as ``{src, seconds, width, height}``; empty when there is no clip or it cannot be decoded."""
    from PIL import Image

    from dataset_builder.errors import KitError
    from dataset_builder.media import sample_frames

    if video is None:
        return []
    try:
        frames = sample_frames(video, number)
    except KitError:  # the build said so already; a report does not fail over one clip
        return []
    images = []
    for array, seconds in zip(frames.array, frames.timestamps):
        image = Image.fromarray(array)
        factor = -(-FRAME_SIDE // min(image.size))
        if factor > 1:
            image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
        elif min(image.size) > 2 * FRAME_SIDE:
            image.thumbnail((4 * FRAME_SIDE, 2 * FRAME_SIDE))
        data = io.BytesIO()
        image.save(data, "PNG", optimize=True)
        source = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
        images.append({"src": source, "seconds": seconds, "width": image.width, "height": image.height})
    return images
