"""The LightEval metric of every task here: a judge's verdict per answer, and accuracy clustered by video."""

from __future__ import annotations

import math

from lighteval.metrics.metrics_corpus import CorpusLevelComputation
from lighteval.metrics.metrics_sample import SampleLevelComputation
from lighteval.metrics.utils.metric_utils import SampleLevelMetric
from lighteval.tasks.requests import SamplingMethod

from dataset_builder.errors import KitError
from dataset_builder.judges import JudgeItem, make_judge
from eval.lighteval_adapter import RUN, doc_frames, response_error
from eval.runner import judge_answers, judge_record
from eval.settings import load_settings
from eval.stats import cluster_mean

METRIC_NAME = "accuracy"


class JudgedVerdict(SampleLevelComputation):
    """Asks the judge named in the settings about all answers of a task at once.

    LightEval's own judge back-ends turn a failure into a verdict or abort the run; here a failure is a row without one.
    """

    def compute(self, docs: list, responses: list, **kwargs) -> list[dict]:
        """One dict per document: ids, ``correct`` (1.0, 0.0 or None), ``score``, ``error``, judge, model revision."""
        settings = load_settings()
        judge = make_judge(dict(settings.judge))
        answers, items = [], []
        for doc, reply in zip(docs, responses, strict=True):
            error, frames = response_error(reply), None
            text = reply.final_text[0] if reply.final_text else ""
            if error is None and judge.needs_frames:
                try:
                    frames = doc_frames(doc, judge.num_frames)
                except KitError as problem:
                    error = str(problem)
            answers.append(text if error is None else KitError(error))
            items.append(JudgeItem(doc.query, doc.get_golds(), frames, text))
        verdicts = judge_answers(answers, items, judge)
        record = judge_record(judge)
        rows = []
        for doc, verdict in zip(docs, verdicts):
            doc.images = None  # or PNG bytes of every frame land in the saved details
            correct = verdict["correct"]
            rows.append(
                {
                    **(doc.specific or {}),
                    "correct": None if correct is None else float(correct),
                    "score": verdict["score"],
                    "error": verdict["error"],
                    "judge": record["name"],
                    "judge_revision": record["revision"],
                    "judge_settings_hash": record["settings_hash"],
                    "model_revision": RUN.model_revision,
                }
            )
        return rows

    def __deepcopy__(self, memo):
        return self

    def __str__(self) -> str:  # goes into the prediction cache's key, so it must not hold an address
        return f"{type(self).__name__}({load_settings().judge})"


class ClusteredAccuracy(CorpusLevelComputation):
    """Share of right answers among those with a verdict, with an interval clustered by video."""

    def compute_corpus(self, items: list[dict]) -> dict[str, float]:
        """Flat floats: ``accuracy``, ``accuracy_stderr``, ``accuracy_ci95_lo``, ``accuracy_ci95_hi``, ``unjudged``."""
        judged = [item for item in items if item["correct"] is not None]
        fields = dict.fromkeys(("mean", "se", "low", "high"), math.nan)
        if judged:
            estimate = cluster_mean([item["correct"] for item in judged], [item["video_id"] for item in judged])
            fields = {key: getattr(estimate, key) for key in fields}
        return {
            METRIC_NAME: fields["mean"],
            f"{METRIC_NAME}_stderr": fields["se"],
            f"{METRIC_NAME}_ci95_lo": fields["low"],
            f"{METRIC_NAME}_ci95_hi": fields["high"],
            "unjudged": float(len(items) - len(judged)),
        }


def judged_accuracy() -> SampleLevelMetric:
    """The metric as a task's ``metrics`` entry."""
    return SampleLevelMetric(
        metric_name=METRIC_NAME,
        higher_is_better=True,
        category=SamplingMethod.GENERATIVE,
        sample_level_fn=JudgedVerdict(),
        corpus_level_fn=ClusteredAccuracy(),
        batched_compute=True,
    )
