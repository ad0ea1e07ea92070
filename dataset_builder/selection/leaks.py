"""Decontamination: questions whose video, or whose own wording, stands in an evaluation set."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import PurePosixPath

import numpy as np

from dataset_builder.errors import KitError
from dataset_builder.selection.duplicates import telling
from dataset_builder.selection.evaluation_sets import EvaluationRow, read_evaluation_set
from dataset_builder.selection.fates import Fates
from dataset_builder.selection.pairs import LEAK
from dataset_builder.settings import DecontaminationConfig
from dataset_builder.table import QuestionTable
from dataset_builder.text import normalise

TELLING_WORDS = 6  # a question of fewer words is asked of many videos
TELLING_VIDEOS = 3  # and so is one that stands on more videos of the training questions than this
_ENDING = re.compile(r"\.(mp4|webm|mkv|avi|mov|gif|m4v|mpg|mpeg|flv|wmv|ts|3gp|zip)$")
_BLOCKS = 4  # a hash of 64 bits is looked up by its four parts of 16 bits
_PROBES = 2  # most bits by which a part is varied; beyond, every two hashes are compared


def drop_leaks(table: QuestionTable, sets: list[DecontaminationConfig], fates: Fates) -> dict[str, dict[str, int]]:
    """Mark the questions that an evaluation set holds, ``leak:SET:MATCH``, and say how many by set and match.

    Matches are looked for in the order ``video_id`` (the names of a video, without folder, ending and case),
    ``sha256``, ``phash`` (at most ``phash_distance`` bits apart; hashes of blank pictures say nothing and are passed
    over), ``question``. Wording alone is weak evidence, since "what is he doing" is asked of every video: an equal
    normalised question counts when one of the evaluation videos it is asked of is the same video, or when the
    question tells one video from others, that is it has at least six words, stands on at most three videos of the
    questions here and on at most three of the evaluation set.
    """
    report = {}
    for config in sets:
        rows = read_evaluation_set(config)
        if not rows:
            raise KitError(
                f"pairs.decontaminate: evaluation set '{config.name}' holds no row of split '{config.split}'"
            )
        finder = _Finder(config, rows)
        if "question" in config.match:
            finder.count_videos(table)
        counts = dict.fromkeys(config.match, 0)
        position = 0
        for number in range(table.block_count):
            for match in finder.find(table.batch(number)):
                if match is not None and fates.codes[position] == 0:
                    fates.set(position, f"{LEAK}{config.name}:{match}")
                    counts[match] += 1
                position += 1
        report[config.name] = {"rows": len(rows), **counts}
    return report


class _Finder:
    """One evaluation set, indexed."""

    def __init__(self, config: DecontaminationConfig, rows: list[EvaluationRow]):
        self.config = config
        self.names = {name for row in rows for name in map(plain_name, row.names) if name}
        self.sha256 = {row.sha256 for row in rows if row.sha256}
        self.short = {value[:16] for value in self.sha256}
        hashes = {row.phash for row in rows if row.phash and telling(row.phash)}
        self.near = NearHashes(sorted(hashes), config.phash_distance)
        self.questions: dict[str, list[EvaluationRow]] = {}
        for row in rows:
            if row.question and (text := normalise(row.question)):
                self.questions.setdefault(text, []).append(row)
        self.videos: dict[str, set[str]] = {}

    def count_videos(self, table: QuestionTable) -> None:
        """On how many videos of the table each of the set's questions stands; counted up to the limit."""
        for number in range(table.block_count):
            batch = table.batch(number)
            for question, sha256 in zip(batch.column("question").to_pylist(), batch.column("sha256").to_pylist()):
                text = normalise(question)
                if text in self.questions:
                    found = self.videos.setdefault(text, set())
                    if len(found) <= TELLING_VIDEOS:
                        found.add(sha256)

    def find(self, batch) -> list[str | None]:
        """The first match of each question of a block, or None."""
        columns = {name: batch.column(name).to_pylist() for name in ("video_id", "source_id", "sha256", "phash")}
        questions = batch.column("question").to_pylist()
        near = self.near.match(columns["phash"]) if "phash" in self.config.match else [False] * len(questions)
        return [
            self._one(video_id, source_id, sha256, phash, question, close)
            for video_id, source_id, sha256, phash, question, close in zip(*columns.values(), questions, near)
        ]

    def _one(self, video_id, source_id, sha256, phash, question, close) -> str | None:
        match, names = self.config.match, {plain_name(video_id), plain_name(source_id)}
        if "video_id" in match and not names.isdisjoint(self.names):
            return "video_id"
        if "sha256" in match and (sha256 in self.sha256 or sha256[:16] in self.names or video_id in self.short):
            return "sha256"
        if close:
            return "phash"
        rows = self.questions.get(text := normalise(question)) if "question" in match else None
        if rows and (self._telling(text, rows) or any(self._same(row, names, sha256, phash) for row in rows)):
            return "question"
        return None

    def _telling(self, text: str, rows: list[EvaluationRow]) -> bool:
        asked = {row.sha256 or row.names or row.phash for row in rows}
        few = len(asked) <= TELLING_VIDEOS and len(self.videos.get(text, ())) <= TELLING_VIDEOS
        return few and len(text.split()) >= TELLING_WORDS

    def _same(self, row: EvaluationRow, names: set[str], sha256: str, phash: str | None) -> bool:
        if row.sha256 == sha256 or not names.isdisjoint(map(plain_name, row.names)):
            return True
        if not (row.phash and phash and telling(phash) and telling(row.phash)):
            return False
        return (int(row.phash, 16) ^ int(phash, 16)).bit_count() <= self.config.phash_distance


def plain_name(name: str | None) -> str:
    """A video's name without folder, file ending and case; empty for None."""
    return _ENDING.sub("", PurePosixPath((name or "").replace("\\", "/")).name.casefold())


class NearHashes:
    """Finds hashes of 64 bits that are near to one of many, without comparing each with each.

    Two hashes that differ in at most d bits differ in at most d // 4 bits in one of their four parts of 16 bits. So
    each part is looked up with every variation of so many bits, and only what is found is compared in full.

    Args:
        hashes: 16 hex digits each.
        distance: most differing bits.
    """

    def __init__(self, hashes: list[str], distance: int):
        self.values = np.array([int(value, 16) for value in hashes], dtype=np.uint64)
        self.distance = distance
        flips = distance // _BLOCKS
        self.masks = None
        if flips <= _PROBES:
            bits = [sum(1 << b for b in chosen) for n in range(flips + 1) for chosen in combinations(range(16), n)]
            self.masks = np.array(bits, dtype=np.uint64)
            self.parts = []
            for block in range(_BLOCKS):
                part = _part(self.values, block)
                order = np.argsort(part, kind="stable")
                self.parts.append((part[order], order))

    def match(self, hashes: list[str | None]) -> list[bool]:
        """Whether each hash is near to a known one; those that say nothing (None, blank pictures) are not."""
        found = np.zeros(len(hashes), dtype=bool)
        where: dict[str, list[int]] = {}
        for number, value in enumerate(hashes):
            if value and len(value) == 16 and telling(value):
                where.setdefault(value, []).append(number)
        asked = np.array([int(value, 16) for value in where], dtype=np.uint64)
        if not len(asked) or not len(self.values):
            return found.tolist()
        near = self._direct(asked) if self.masks is None else self._by_parts(asked)
        for numbers, hit in zip(where.values(), near):
            found[numbers] = hit
        return found.tolist()

    def _direct(self, asked: np.ndarray) -> np.ndarray:
        return np.array([(np.bitwise_count(self.values ^ one) <= self.distance).any() for one in asked])

    def _by_parts(self, asked: np.ndarray) -> np.ndarray:
        near = np.zeros(len(asked), dtype=bool)
        for block, (part, order) in enumerate(self.parts):
            left = np.flatnonzero(~near)
            keys = (_part(asked[left], block)[:, None] ^ self.masks[None, :]).ravel()
            begin, end = np.searchsorted(part, keys, "left"), np.searchsorted(part, keys, "right")
            hits = np.flatnonzero(end > begin)
            for hit in hits.tolist():
                query = left[hit // len(self.masks)]
                if not near[query]:
                    known = self.values[order[begin[hit] : end[hit]]]
                    near[query] = (np.bitwise_count(known ^ asked[query]) <= self.distance).any()
        return near


def _part(values: np.ndarray, block: int) -> np.ndarray:
    return (values >> np.uint64(16 * block)) & np.uint64(0xFFFF)
