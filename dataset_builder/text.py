"""Text: when two short answers say the same (reference judge, duplicates, identical pairs), and safe messages."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

# Spelled out in the reference judge's settings, so that a change gives its scores another hash.
NORMALISATION = (
    "Unicode NFKC, case folded",
    "commas between groups of three digits removed, points between digits and signs before digits kept",
    "other punctuation becomes a space, apostrophes vanish",
    "articles a, an, the before another word removed",
    "number words zero to ten as digits",
    "Chinese and Japanese characters are words of their own",
)

_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}
_ARTICLES = frozenset(("a", "an", "the"))
_APOSTROPHES = re.compile("['’ʼ`´]")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NEGATIVE = re.compile(r"(?<!\S)[-−–](?=\d)")
_POINT = re.compile(r"(?<=\d)\.(?=\d)")
_DIGIT = re.compile(r"\d")
_CJK = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")


# ASCII text without numbers that have signs, the usual case, takes a short way to the same words.
_ASCII = {code: " " for code in range(128) if unicodedata.category(chr(code))[0] in "PZC"}
_ASCII_MARKS = re.compile(r"[.,\-]")


def words(text: str) -> list[str]:
    """The words of an answer, normalised (see :data:`NORMALISATION`); empty when it says nothing."""
    if text.isascii() and not (_ASCII_MARKS.search(text) and _DIGIT.search(text)):
        return _plain_words(_APOSTROPHES.sub("", text.lower()).translate(_ASCII).split())
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    text = _THOUSANDS.sub("", _APOSTROPHES.sub("", text))
    # Marks that carry a value are hidden in private-use characters while all other punctuation goes.
    text = _POINT.sub("\ue000", _NEGATIVE.sub("\ue001", text))
    text = "".join(" " if unicodedata.category(c)[0] in "PZC" and c not in "\ue000\ue001" else c for c in text)
    text = _CJK.sub(r" \1 ", text.replace("\ue000", ".").replace("\ue001", "-"))
    return _plain_words(text.split())


def _plain_words(found: list[str]) -> list[str]:
    """Without articles, number words as digits."""
    # An article needs a word behind it: the answer "A" to a multiple-choice question is no article.
    kept = [word for i, word in enumerate(found) if word not in _ARTICLES or i + 1 == len(found)]
    return [_NUMBERS.get(word, word) for word in kept]


def normalise(text: str) -> str:
    """The normalised words with single spaces; equal for answers that say the same. Idempotent."""
    return " ".join(words(text))


def one_line(text: str) -> str:
    """The text with line breaks and other control characters spelled out, so that a message stays one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def token_f1(first: str, second: str) -> float:
    """F1 of the words two texts share (counted with repetition), from 0 to 1; 0 when either says nothing."""
    left, right = words(first), words(second)
    shared = sum((Counter(left) & Counter(right)).values())
    return 2 * shared / (len(left) + len(right)) if shared else 0.0
