"""Sources: what a person has, read into the question table. One small reader for each shape of file.

A reader gives numbered rows under the kit's names; :mod:`~dataset_builder.sources.collect` checks them, looks up their
videos and writes the work folder's files. A row that cannot be used is left out with one clear line; the rest goes on.
"""

from dataset_builder.sources.collect import SourceReport, read_sources
from dataset_builder.sources.licenses import KnownSet, find_set, known_sets, terms_of
from dataset_builder.sources.rows import question_id, split_of

__all__ = [
    "KnownSet",
    "SourceReport",
    "find_set",
    "known_sets",
    "question_id",
    "read_sources",
    "split_of",
    "terms_of",
]
