"""Diversity of a question's answers: the zoo's against each member's, at equal numbers of answers."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from dataset_builder.selection.scored import Scored
from dataset_builder.text import words

QUESTIONS = 20_000  # most questions whose n-grams are counted
EMBEDDED = 2_000  # most questions whose answers are embedded


class Diversity:
    """Distinct n-grams and embedding distance, added up while the answers stream by.

    For every member, each question to which it gave two or more usable answers is measured twice: on those answers,
    and on as many drawn at random (seeded by the question's id) from all usable answers to that question.

    Args:
        questions: in the dataset; of more than 20,000 (2,000 for embeddings) every so-many-th is measured.
        encode: texts to unit vectors, or None to leave the distance out.
    """

    def __init__(self, questions: int, encode=None):
        self.encode, self.seen = encode, 0
        self.step, self.embed_step = max(1, -(-questions // QUESTIONS)), max(1, -(-questions // EMBEDDED))
        self.sums: dict[str, dict[str, np.ndarray]] = {}

    def add(self, scored: Scored) -> None:
        """Take some whole questions into account."""
        for index, question_id in enumerate(scored.questions):
            number, self.seen = self.seen, self.seen + 1
            if number % self.step:
                continue
            begin, end = scored.starts[index], scored.starts[index + 1]
            usable = sorted((i for i in range(begin, end) if scored.flag[i] < 0), key=scored.ids.__getitem__)
            self._measure(question_id, scored, usable, embed=self.encode is not None and number % self.embed_step == 0)

    def _measure(self, question_id: str, scored: Scored, usable: list[int], embed: bool) -> None:
        by_member: dict[str, list[int]] = {}
        for i in usable:
            by_member.setdefault(scored.models[i], []).append(i)
        if len(usable) < 2:
            return
        vectors = dict(zip(usable, self.encode([scored.texts[i] for i in usable]))) if embed else {}
        tokens = {i: words(scored.texts[i]) for i in usable}
        self._note("", "zoo", usable, tokens, vectors)
        rng = random.Random(question_id)
        for member, own in sorted(by_member.items()):
            if len(own) > 1 and len(by_member) > 1:
                drawn = rng.sample(usable, len(own))
                self._note(member, "member", own, tokens, vectors)
                self._note(member, "zoo", drawn, tokens, vectors)

    def _note(self, member: str, side: str, rows: Sequence[int], tokens: dict, vectors: dict) -> None:
        texts = [tokens[i] for i in rows]
        distance = _distance(np.stack([vectors[i] for i in rows])) if vectors else 0.0
        counted = 1.0 if vectors else 0.0
        sums = np.array([1.0, len(rows), distinct(texts, 1), distinct(texts, 2), distance, counted])
        sides = self.sums.setdefault(member, {})
        sides[side] = sides.get(side, 0.0) + sums

    def report(self) -> dict:
        """``{zoo: {…}, members: {name: {member: {…}, zoo: {…}}}}``.

        Each innermost part has ``questions, samples`` (answers a question), ``distinct_1, distinct_2`` (different
        n-grams by all n-grams, mean over questions) and ``distance`` (mean cosine distance of two answers, or None).
        """
        plain = {name: {side: _means(sums) for side, sums in sides.items()} for name, sides in self.sums.items()}
        return {"zoo": plain.pop("", {}).get("zoo"), "members": dict(sorted(plain.items()))}


def distinct(texts: Sequence[Sequence[str]], size: int) -> float:
    """Different n-grams by all n-grams of some texts (distinct-n, Li et al. 2016); 0 without any."""
    grams = [tuple(words[i : i + size]) for words in texts for i in range(len(words) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _distance(vectors: np.ndarray) -> float:
    count = len(vectors)
    cosines = vectors @ vectors.T
    return float(1 - (cosines.sum() - np.trace(cosines)) / (count * (count - 1)))


def _means(sums: np.ndarray) -> dict[str, float | int | None]:
    questions, samples, one, two, distance, counted = sums.tolist()
    return {
        "questions": int(questions),
        "samples": round(samples / questions, 3),
        "distinct_1": round(one / questions, 6),
        "distinct_2": round(two / questions, 6),
        "distance": round(distance / counted, 6) if counted else None,
    }
