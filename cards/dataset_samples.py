"""Sample pairs of a dataset card, and strips of frames of those whose video may be shown."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cards.dataset_videos import clips_of, why_not_passed_on
from cards.run_folder import Run
from cards.text import NOT_MEASURED
from dataset_builder.errors import KitError

NUMBER = 4  # pairs
FRAMES = 6  # of a strip
SIDE = 128  # px, a frame's height: small pictures grow by a whole factor, so that pixels stay square and sharp
TEXT_LIMIT = 500  # characters of a question or an answer that a card shows
NAMES = tuple(f"sample-{number}" for number in range(1, NUMBER + 1))
_GREY = (127, 136, 148, 255)  # of the times below the frames: readable on white and on black
_MARKS = re.compile(r"([\\`*_\[\]$|~])")


def draw(pairs: Sequence[Mapping], kinds: Mapping[str, str], number: int = NUMBER) -> list[Mapping]:
    """A few pairs for the eye: drawn by a hash and spread over question types, not picked for their looks.

    Args:
        pairs: with ``question_id`` and ``response_id_chosen``.
        kinds: question type by question id.
        number: how many.
    """
    by_kind: dict[str, list[Mapping]] = defaultdict(list)
    for pair in sorted(pairs, key=lambda pair: (_place(pair), pair["response_id_rejected"])):
        by_kind[kinds.get(pair["question_id"]) or ""].append(pair)
    drawn: list[Mapping] = []
    while len(drawn) < number and any(by_kind.values()):
        drawn += [by_kind[kind].pop(0) for kind in sorted(by_kind, key=_hashed) if by_kind[kind]]
    return drawn[:number]


def _place(pair: Mapping) -> str:
    return _hashed(f"{pair['question_id']} {pair['response_id_chosen']}")


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def shown(text: str | None) -> str:
    """A text from the rows as a card's table shows it: one line, no markup, cut when it is long."""
    line = " ".join((text or "").split())
    line = line if len(line) <= TEXT_LIMIT else line[: TEXT_LIMIT - 1].rstrip() + "…"
    return _MARKS.sub(r"\\\1", line.replace("&", "&amp;").replace("<", "&lt;")) or "(empty)"


def scores_of(answer: Mapping[str, Any] | None) -> dict[str, float | None]:
    """Every single score of an answer on its declared range, by ``judge · criterion``."""
    return {f"{s['judge']} · {s['criterion']}": s["score"] for s in (answer or {}).get("scores") or []}


def three(value: float | None) -> str:
    """A score with three digits at most: 0.806454 → 0.806, 4.0 → 4."""
    return NOT_MEASURED if value is None else f"{value:.3g}"


def sample_rows(
    pairs: Sequence[Mapping], kinds: Mapping[str, str], answers: Mapping[str, Mapping[str, Any]]
) -> list[dict]:
    """What a card shows of each sample: the question, both answers, every score of each.

    Args:
        pairs: all pairs, with ``question`` and ``answer`` (the reference).
        kinds: question type by question id.
        answers: by response id.
    """
    samples = []
    for pair in draw(pairs, kinds):
        sides = {side: answers.get(pair[f"response_id_{side}"]) for side in ("chosen", "rejected")}
        judges = list(dict.fromkeys(name for answer in sides.values() for name in scores_of(answer)))
        rows = [
            {
                "side": side,
                "text": shown((answer or {}).get("response")),
                "model": pair[f"model_{side}"] or "not stated",
                "score": pair[f"score_{side}"],
                "scores": [three(scores_of(answer).get(name)) for name in judges],
            }
            for side, answer in sides.items()
        ]
        samples.append({"pair": pair, "kind": kinds.get(pair["question_id"]), "judges": judges, "rows": rows})
    return samples


def draw_strips(run: Run, folder: Path) -> list[str]:
    """Write ``sample-N.png``, the frames of the N-th sample, for those whose video may be passed on.

    Args:
        run: the run.
        folder: of the figures; strips that should not be there are removed.

    Returns:
        The names of the strips that were drawn.
    """
    pairs = draw(run.pairs, run.question_types)
    about = {row["question_id"]: row for row in run.questions}
    allowed = set()
    for pair in pairs:
        row = about.get(pair["question_id"], {})
        if why_not_passed_on(run.provenance, row.get("source"), row.get("license")) is None:
            allowed.add(pair["question_id"])
    clips = dict(clips_of(run.dataset, allowed)) if allowed else {}
    drawn = []
    for name, pair in zip(NAMES, pairs):
        video = clips.get(pair["question_id"])
        if video is not None and write_strip(video, folder / f"{name}.png"):
            drawn.append(name)
    for name in set(NAMES) - set(drawn):
        (folder / f"{name}.png").unlink(missing_ok=True)
    return drawn


def write_strip(video: bytes, path: Path) -> bool:
    """Write evenly spaced frames side by side with their seconds below, on no background; False when it has none."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    from dataset_builder.media import sample_frames

    try:
        frames = sample_frames(video, FRAMES)
    except KitError:  # the build said so already; a card does not fail over one clip
        return False
    pictures = [_sized(Image.fromarray(array)) for array in frames.array]
    gap, below = 6, 22
    width, height = pictures[0].size
    strip = Image.new("RGBA", (len(pictures) * (width + gap) - gap, height + below), (0, 0, 0, 0))
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), 13)
    pen = ImageDraw.Draw(strip)
    for place, (picture, seconds) in enumerate(zip(pictures, frames.timestamps)):
        left = place * (width + gap)
        strip.paste(picture, (left, 0))
        pen.text((left + 2, height + 4), f"{seconds:.1f} s", fill=_GREY, font=font)
    strip.save(path, "PNG", optimize=True)
    return True


def _sized(picture):
    from PIL import Image

    if picture.height <= SIDE // 2:
        factor = SIDE // picture.height
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return picture.resize((max(1, round(picture.width * SIDE / picture.height)), SIDE), Image.Resampling.LANCZOS)
