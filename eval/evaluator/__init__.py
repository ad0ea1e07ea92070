"""The evaluator as a Hub model: a judge of answers to questions about videos that anyone can load, and its repo.

    evaluator = VQAEvaluator.from_pretrained("NAMESPACE/mmaip-v-evaluator")
    verdict = evaluator("clip.mp4", "what is she cutting ?", "a red onion", references=["an onion"])
    print(verdict.correct, verdict.probability, verdict.reason)

The files: `hub.py` (the class), `verdict.py` (what goes in and comes out), `config.py` (`config.json`), `weights.py` (a
local judge's checkpoint), `card.py` (README.md), `closure.py` and `repo.py` (the package in the repo, with which its
tasks run where the kit is not), `own.py` (what that package does when it runs).
"""

from eval.evaluator.hub import VQAEvaluator
from eval.evaluator.verdict import Verdict

__all__ = ["VQAEvaluator", "Verdict"]
