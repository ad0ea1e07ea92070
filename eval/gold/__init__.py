"""Gold labels: what people say of a random sample of answers, so that a judge's bias can be measured and taken out.

Example:
    >>> from eval.gold import gold_for, read_gold
    >>> gold = gold_for(results, read_gold("gold.jsonl"))  # doctest: +SKIP
"""

from eval.gold.matching import Matched, gold_for, match_gold, match_pairs, pair_gold_for
from eval.gold.rows import GoldLabel, LabelFile, latest, read_gold, response_hash
from eval.gold.sampling import Sample, draw_sample, draw_videos, extend_sample, sample_path

__all__ = [
    "GoldLabel",
    "LabelFile",
    "Matched",
    "Sample",
    "draw_sample",
    "draw_videos",
    "extend_sample",
    "gold_for",
    "latest",
    "match_gold",
    "match_pairs",
    "pair_gold_for",
    "read_gold",
    "response_hash",
    "sample_path",
]
