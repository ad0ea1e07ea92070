"""Texts that say nearly the same: by their words (MinHash), or by meaning (a sentence-embedding model)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from dataset_builder.errors import KitError
from dataset_builder.settings import DedupConfig
from dataset_builder.text import words

_PERMUTATIONS = 128
_DIRECT = 64  # so many texts are compared each with each, without an index


def shingles(text: str) -> frozenset[str]:
    """The normalised words and their neighbouring pairs: what Jaccard similarity is taken over."""
    found = words(text)
    return frozenset(found) | {f"{left} {right}" for left, right in pairwise(found)}


def jaccard(left: frozenset, right: frozenset) -> float:
    """Shared parts by all parts, 0 to 1; two empty sets are equal."""
    total = len(left | right)
    return len(left & right) / total if total else 1.0


def near_groups(texts: Sequence[str], threshold: float) -> list[int]:
    """For each text the index of the first one kept that is like it; its own index when it is kept.

    Up to 64 texts are compared each with each; of more, MinHash (datasketch, 128 permutations) proposes which to
    compare, so that a few near-duplicates at the threshold may be missed. The similarity itself is always exact.
    """
    parts = [shingles(text) for text in texts]
    kept: list[int] = []
    result = []
    index = _Index(parts, threshold) if len(texts) > _DIRECT else None
    for number, part in enumerate(parts):
        like = kept if index is None else index.like(number)
        first = next((i for i in like if jaccard(parts[i], part) >= threshold), number)
        result.append(first)
        if first == number:
            kept.append(number)
            if index is not None:
                index.keep(number)
    return result


class _Index:
    def __init__(self, parts: Sequence[frozenset], threshold: float):
        from datasketch import MinHash, MinHashLSH

        # The index is asked a little below the threshold: it errs on both sides, and every hit is compared.
        self._lsh = MinHashLSH(threshold=max(0.05, threshold - 0.1), num_perm=_PERMUTATIONS)
        self._hash, self._parts = MinHash(num_perm=_PERMUTATIONS, seed=1), parts
        self._asked: tuple[int, object] = (-1, None)

    def like(self, number: int) -> list[int]:
        return sorted(self._lsh.query(self._of(number)))

    def keep(self, number: int) -> None:
        self._lsh.insert(number, self._of(number))

    def _of(self, number: int):
        if self._asked[0] != number:
            hashed = self._hash.copy()
            hashed.update_batch([part.encode() for part in sorted(self._parts[number])])
            self._asked = (number, hashed)
        return self._asked[1]


@cache
def embedder(model: str) -> Callable[[Sequence[str]], np.ndarray]:
    """A function from texts to unit vectors, float32 [texts, size], on the CPU.

    Raises:
        KitError: there is no such model.
    """
    from sentence_transformers import SentenceTransformer

    try:
        loaded = SentenceTransformer(str(Path(model)) if Path(model).is_dir() else model, device="cpu")
    except Exception as error:  # sentence-transformers raises many kinds; the first line says what is missing
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise KitError(f"sentence-embedding model {model}: cannot be loaded ({reason})") from None

    def encode(texts: Sequence[str]) -> np.ndarray:
        return loaded.encode(
            list(texts), batch_size=64, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )

    return encode


def meaning_groups(vectors: np.ndarray, threshold: float) -> list[int]:
    """As :func:`near_groups`, over unit vectors and their cosine."""
    kept: list[int] = []
    result = []
    for number in range(len(vectors)):
        first = number
        if kept:
            close = np.flatnonzero(vectors[kept] @ vectors[number] >= threshold - 1e-6)
            first = kept[close[0]] if len(close) else number
        result.append(first)
        if first == number:
            kept.append(number)
    return result


def answer_labels(config: DedupConfig) -> Callable[[Sequence[str]], Sequence] | None:
    """Labels of the answers of one question, equal where they say the same; None for the normalised text."""
    if config.answers == "near":
        return lambda texts: _by_text(texts, lambda some: near_groups(some, config.threshold))
    if config.answers == "meaning":
        encode = embedder(config.model)
        return lambda texts: _by_text(texts, lambda some: meaning_groups(encode(some), config.threshold))
    return None


def _by_text(texts: Sequence[str], group: Callable[[Sequence[str]], list[int]]) -> list[int]:
    """Group in the order of the texts, so that the order of the answers decides nothing."""
    normal = [" ".join(words(text)) for text in texts]
    distinct = sorted(set(normal))
    of = dict(zip(distinct, group(distinct)))
    return [of[text] for text in normal]
