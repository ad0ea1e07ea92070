"""Labelling without a page: which item comes next for whom, and storing what was said of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from dataset_builder.errors import KitError
from eval.gold.items import Item
from eval.gold.rows import CHOICES, VERDICTS, GoldLabel, LabelFile


@dataclass(frozen=True)
class Progress:
    """How far an annotator is.

    Attributes:
        done: items labelled.
        total: items to label.
        videos_done: videos without an item left to label.
        videos: videos with an item to label.
    """

    done: int
    total: int
    videos_done: int
    videos: int

    @property
    def share(self) -> float:
        """Labelled share, 0 to 1."""
        return self.done / self.total if self.total else 1.0


class Labelling:
    """Items and a label file, for any number of annotators.

    Args:
        items: what to label, in order; equal pairs among them are settled without asking.
        file: where labels go; labels of other items in it are left alone.
        now: gives the time that a label is stamped with.

    Raises:
        KitError: if there is nothing to label.
    """

    def __init__(self, items: Sequence[Item], file: LabelFile, now=None):
        self.items = [item for item in items if not item.is_settled]
        if not self.items:
            raise KitError("there is nothing to label: no video of the sample has an answer that people could judge")
        self.file = file
        self.choices = CHOICES if self.items[0].is_pair else VERDICTS
        self._now = now or (lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        self._looked: set[tuple] = set()  # (annotator, item) whose references were opened
        self._settled: dict[int, list[Item]] = {}  # equal pairs that stand before the item at this position
        position = 0
        for item in items:
            if item.is_settled:
                self._settled.setdefault(position, []).append(item)
            else:
                position += 1

    def labels_of(self, annotator: str) -> dict[tuple, GoldLabel]:
        """This annotator's labels that count, by item."""
        return {label.item: label for label in self.file.labels() if label.annotator == annotator}

    def next_after(self, annotator: str, position: int = -1) -> int | None:
        """Position of the next item that this annotator has not labelled, from the beginning again at the end.

        Returns:
            None if everything is labelled.
        """
        given = self.labels_of(annotator)
        positions = [*range(position + 1, len(self.items)), *range(min(position + 1, len(self.items)))]
        return next((i for i in positions if self.items[i].key not in given), None)

    def progress(self, annotator: str) -> Progress:
        """How far this annotator is."""
        given = self.labels_of(annotator)
        open_videos = {item.video_id for item in self.items if item.key not in given}
        videos = {item.video_id for item in self.items}
        done = sum(item.key in given for item in self.items)
        return Progress(done, len(self.items), len(videos) - len(open_videos), len(videos))

    def given(self, annotator: str, position: int) -> str | None:
        """What this annotator said of an item, as it stands on their screen."""
        item = self.items[position]
        label = self.labels_of(annotator).get(item.key)
        if label is None:
            return None
        shown = tuple(item.hashes[i] for i in item.order(annotator))
        if label.label in ("A", "B") and label.responses != shown:  # given elsewhere, with the answers the other way
            return "B" if label.label == "A" else "A"
        return label.label

    def look(self, annotator: str, position: int) -> None:
        """Note that the annotator looks at an item's references: its label will say so."""
        self._looked.add((annotator, self.items[position].key))

    def give(self, annotator: str, position: int, label: str, reference_shown: bool = False) -> None:
        """Store a label; it replaces what the annotator said of this item before.

        Raises:
            KitError: if the label is none of the choices, or cannot be stored.
        """
        if label not in self.choices:
            raise KitError(f"a label must be one of {', '.join(self.choices)}, not {label!r}")
        item, order = self.items[position], self.items[position].order(annotator)
        before = self.labels_of(annotator).get(item.key)
        reference_shown |= (annotator, item.key) in self._looked or (before is not None and before.reference_shown)
        self.file.append(self._label(item, order, annotator, label, reference_shown=reference_shown))
        self._settle(annotator)

    def _settle(self, annotator: str) -> None:
        """Store the ties of equal pairs up to where the annotator is, so that they too follow the sample's order."""
        reached = self.next_after(annotator)
        reached = len(self.items) if reached is None else reached
        given = self.labels_of(annotator)
        for position, items in self._settled.items():
            for item in items if position <= reached else ():
                if item.key not in given:
                    self.file.append(self._label(item, (0, 1), annotator, "tie", asked=False))

    def _label(self, item: Item, order: tuple[int, ...], annotator: str, label: str, **more) -> GoldLabel:
        return GoldLabel(
            question_id=item.question_id,
            video_id=item.video_id,
            responses=tuple(item.hashes[i] for i in order),
            annotator=annotator,
            label=label,
            models=tuple(item.models[i] for i in order) if item.is_pair else (),
            labelled_at=self._now(),
            **more,
        )
