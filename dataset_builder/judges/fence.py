"""An answer is untrusted text: shown to a judge it stays data, whatever it says.

The answer stands between two lines that carry a word made of the answer's own hash, so that no answer can hold the line
that would end it; characters that a reader cannot see are made visible; tokens by which chat templates and processors
mark turns, pictures and videos are broken up.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

# <|im_start|>, <video>, <|turn>, <turn|>, [INST], <<SYS>>, [gMASK], <s> … of the families' templates and processors,
# and what looks like a marked line.
_TOKENS = re.compile(
    r"<[|｜][^<>]{0,60}[|｜]>|</?[|｜]?[A-Za-z_][A-Za-z0-9_.:-]{0,60}[|｜]?>|<</?SYS>>|"
    r"\[/?INST\]|\[[gs]MASK\]|\[control_[0-9]+\]|\[(?=(?:END|ANSWER)\b)|(?-i:\[/?[A-Z][A-Z_]{1,30}\])",
    re.IGNORECASE,
)
_INVISIBLE = {"Cf", "Cc", "Co", "Cn", "Cs", "Zl", "Zp"}
_SELECTORS = re.compile("[\ufe00-\ufe0d\U000e0100-\U000e01ef]")  # marks that can carry text; emoji use the two others
_KEPT = {"\n", "\t"}


def harmless(text: str) -> str:
    """The text with invisible characters spelled out and template tokens broken up; ordinary text is unchanged."""
    text = text.replace("\r\n", "\n")
    text = "".join(f"[U+{ord(c):04X}]" if _hidden(c) else c for c in text)
    return _TOKENS.sub(lambda found: found.group().replace("<", "‹").replace(">", "›").replace("[", "("), text)


def _hidden(character: str) -> bool:
    if character in _KEPT:
        return False
    return unicodedata.category(character) in _INVISIBLE or _SELECTORS.match(character) is not None


def fence(text: str, label: str = "ANSWER") -> str:
    """The text between two lines that it cannot hold itself.

    Args:
        text: untrusted.
        label: what the text is called.
    """
    text = harmless(text)
    word = hashlib.sha256(f"fence\0{text}".encode()).hexdigest()[:8].upper()
    while word in text.upper():  # a hash of itself inside a text is as good as impossible, and still not allowed
        word = hashlib.sha256(word.encode()).hexdigest()[:8].upper()
    return f"[{label} {word}]\n{text}\n[END {word}]"
