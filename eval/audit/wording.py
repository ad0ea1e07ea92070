"""One answer in other words that say the same: longer, in bullet points, in bold, confident, hedged."""

from __future__ import annotations

import re

# True of every video and of every answer, and so worth nothing.
_EMPTY = (
    "The question is about this video.",
    "A video is a row of pictures that follow one another.",
    "One picture is shown, then the next one, until the last.",
    "Every picture stays on the screen for a short time.",
)
DOSES = (1, len(_EMPTY))  # sentences of the two lengths
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def padded(answer: str, sentences: int) -> str:
    """The answer, then so many sentences that add nothing."""
    answer = answer.rstrip()
    return " ".join([answer if answer.endswith((".", "!", "?")) else f"{answer}.", *_EMPTY[:sentences]])


def words_added(sentences: int) -> int:
    """By how many words :func:`padded` makes any answer longer."""
    return sum(len(sentence.split()) for sentence in _EMPTY[:sentences])


def bullets(answer: str) -> str:
    """Each sentence a bullet point."""
    return "\n".join(f"- {sentence}" for sentence in _SENTENCE.split(answer.strip()))


def bold(answer: str) -> str:
    """In Markdown's bold."""
    return f"**{answer.strip()}**"


# Of six words each, so that a judge that counts words does not seem to like a tone.
_PLAIN, _SURE, _UNSURE = (
    "My answer to the question is: ",
    "I am completely certain of this: ",
    "I am not sure of this: ",
)


def plain(answer: str) -> str:
    """With an introduction that says nothing: what the two tones are compared with."""
    return _PLAIN + answer


def confident(answer: str) -> str:
    """With an introduction that claims certainty."""
    return _SURE + answer


def hedged(answer: str) -> str:
    """With an introduction that admits doubt."""
    return _UNSURE + answer


def as_is(answer: str) -> str:
    """Unchanged."""
    return answer


# name → (what a table calls it, the change, what it is compared with)
STYLES = {
    "bullets": ("bullet points", bullets, as_is),
    "bold": ("bold", bold, as_is),
    "confident": ("confident tone", confident, plain),
    "hedged": ("hedging", hedged, plain),
}
