"""The page's pieces as HTML. Every text from outside is escaped: answers were written by models."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from eval.gold.items import Item
from eval.gold.session import Progress

NAMES = {
    "correct": "Correct",
    "incorrect": "Incorrect",
    "unsure": "Unsure",
    "A": "A better",
    "B": "B better",
    "tie": "Tie",
}
KEYS = {"correct": "c", "incorrect": "i", "unsure": "u", "A": "a", "B": "b", "tie": "t"}


HINTS = {
    False: "Correct: it answers the question, and what it says is true of the video. A reference is one right answer; "
    "there may be others.",
    True: "Better: truer of the video, and closer to what was asked. Neither length nor style counts.",
}


def header(annotator: str, progress: Progress, what: str) -> str:
    """Progress of an annotator: items (called ``what``), videos, share."""
    percent = f"{100 * progress.share:.0f}"
    return (
        '<div class="top"><div class="counts">'
        f'<span><b id="done">{progress.done}</b> of {progress.total} {what}</span>'
        f"<span>{progress.videos_done} of {progress.videos} videos</span><span>{percent} %</span>"
        f'<span class="who" title="annotator">{escape(annotator)}</span></div>'
        f'<div class="bar" role="progressbar" aria-valuenow="{percent}" aria-valuemin="0" aria-valuemax="100">'
        f'<div style="width:{percent}%"></div></div></div>'
    )


def clip(number: int, error: str | None = None) -> str:
    """The player of the video with this number, or why there is none."""
    if error:
        return f'<div class="clip broken">{escape(error)}</div>'
    return (
        f'<div class="clip"><video src="/clip/{number}" autoplay loop muted playsinline preload="auto"></video></div>'
        # below the picture, not over it: what a question asks about may stand in a corner
        '<div class="player"><button type="button" class="play" title="space">Pause</button>'
        '<input type="range" min="0" max="1000" value="0" aria-label="position"><span class="time"></span></div>'
    )


def card(item: Item, order: Sequence[int], position: int, total: int, given: str | None) -> str:
    """Question and answer, or both answers, without a word on who gave them."""
    state = f'<span class="given">labelled: {escape(NAMES[given].lower())}</span>' if given else ""
    head = f'<div class="where">{"pair" if item.is_pair else "answer"} {position + 1} of {total}{state}</div>'
    question = _text("question", "Question", item.question)
    if not item.is_pair:
        return f'<div class="card">{head}{question}{_answer("Answer", item.responses[0])}</div>'
    sides = "".join(_answer(f"Answer {name}", item.responses[index]) for name, index in zip("AB", order, strict=True))
    return f'<div class="card">{head}{question}<div class="sides">{sides}</div></div>'


def reference(item: Item, shown: bool) -> str:
    """Reference answers if they were asked for; they are not on the page before."""
    if not shown:
        return ""
    if not item.references:
        return '<div class="reference"><div class="name">Reference</div><i>there is none</i></div>'
    lines = "".join(f'<li dir="auto">{escape(text)}</li>' for text in item.references)
    return f'<div class="reference"><div class="name">Reference</div><ul>{lines}</ul></div>'


def hint(is_pair: bool) -> str:
    """What the labels mean."""
    return f'<div class="hint">{HINTS[is_pair]} Space plays or pauses the video.</div>'


def finished(progress: Progress, what: str) -> str:
    """What stands where the question stood when nothing is left."""
    return (
        '<div class="card finished"><div class="tick" aria-hidden="true">✓</div>'
        f"<h2>All {progress.total} {what} are labelled</h2>"
        f"<p>They stand in the label file, from {progress.videos} videos. Go back with ← to look at one again, or "
        "start the command again with more <code>--videos</code>.</p></div>"
    )


def notice(text: str | None) -> str:
    """A line about something that went wrong."""
    return f'<div class="notice" role="alert">{escape(text)}</div>' if text else ""


def export(count: int) -> str:
    """The link to the label file."""
    labels = f"{count} label{'' if count == 1 else 's'}"
    return f'<a class="download" id="download" href="/labels.jsonl" download="gold.jsonl">Download {labels} (JSONL)</a>'


def table(header_row: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> str:
    """A small table with a line below."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header_row)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    lines = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if rows else ""
    return f'<div class="agreement">{lines}<p>{escape(note)}</p></div>'


def _text(kind: str, name: str, text: str) -> str:
    return f'<div class="{kind}"><div class="name">{name}</div><div class="text" dir="auto">{escape(text)}</div></div>'


def _answer(name: str, text: str) -> str:
    if text.strip():
        return _text("answer", name, text)
    return f'<div class="answer"><div class="name">{name}</div><div class="text"><i>(an empty answer)</i></div></div>'
