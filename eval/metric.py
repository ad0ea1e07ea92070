"""The LightEval metric of every task here: a judge's verdict per answer, and figures clustered by video."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path

from lighteval.metrics.metrics_corpus import CorpusLevelComputation
from lighteval.metrics.metrics_sample import SampleLevelComputation
from lighteval.metrics.utils.metric_utils import SampleLevelMetric
from lighteval.tasks.requests import SamplingMethod

from dataset_builder.judges import make_judge
from dataset_builder.models import CallCache
from dataset_builder.stages import canonical_json, fingerprint
from eval.lighteval_adapter import RUN, response_error
from eval.rejudge import rejudge
from eval.results import SCORE, Results
from eval.settings import cache_folder, load_settings
from eval.stats import cluster_mean
from eval.verdicts import failed

METRIC_NAME = "accuracy"


class JudgedVerdict(SampleLevelComputation):
    """Asks the judge named in the settings about all answers of a task.

    LightEval's own judge back-ends turn a failure into a verdict or abort the run; here a failure is a row without one.
    Verdicts of a local judge and replies of an endpoint are kept in the cache folder: a stopped run asks nothing twice.
    """

    def compute(self, docs: list, responses: list, **kwargs) -> list[dict]:
        """One dict per document, its values texts, numbers or None.

        ``question_id, video_id, question_type, caption``; ``correct`` (1.0, 0.0, None without a verdict), ``score``
        (aggregate, 0–1), ``error``, ``reason``, ``probability``; ``scores`` (JSON: raw value by criterion);
        ``judge`` (JSON: `eval.fingerprint.judge_record`), ``self_judged``, ``model_revision``. JSON, because tables
        would fill nested fields of one row with those of another.
        """
        from tqdm.auto import tqdm

        settings, task = load_settings(), docs[0].task_name
        asked = CallCache(cache_folder() / "calls.sqlite") if settings.judge.get("endpoint") else None
        with closing(asked) if asked else nullcontext():
            judge = make_judge(dict(settings.judge), settings.device, asked)
            rows = [answer_row(doc, reply) for doc, reply in zip(docs, responses, strict=True)]
            # Questions of one video side by side, whatever order LightEval shuffled them into.
            order = sorted(range(len(rows)), key=lambda i: (rows[i]["video_id"], rows[i]["question_id"]))
            answers = Results(task, task, RUN.model_revision, rows=[rows[i] for i in order])
            videos = {doc.specific["question_id"]: doc.images.video for doc in docs}
            content = RUN.fingerprints.get(task.split("|")[0])
            work = cache_folder() / "verdicts" / fingerprint([task, content, RUN.model_revision])
            with tqdm(total=len(rows), desc=f"judging by {judge.name}", unit="answer") as bar:
                judged = rejudge(
                    answers,
                    judge,
                    videos,
                    work=work,
                    trained_on=settings.trained_on,
                    on_block=lambda done, total: bar.update(done - bar.n),
                )
        found = dict(zip(order, judged.rows, strict=True))
        record = canonical_json(judged.judge)
        for doc in docs:
            doc.images = None  # or PNG bytes of every frame land in the saved details
        RUN.verdicts[task] = (judged.errors, len(rows))
        return [sample(found[i], record, judged.self_judged) for i in range(len(rows))]

    def __deepcopy__(self, memo):
        return self

    def __str__(self) -> str:  # goes into saved results, so it must not hold an address
        judge = dict(load_settings().judge)
        if judge.get("model") and Path(judge["model"]).is_dir():  # nor a path of this machine
            judge["model"] = Path(judge["model"]).name
        return f"{type(self).__name__}({judge})"


def answer_row(doc, reply) -> dict:
    """A document and its answer as a row of results without a verdict."""
    error = response_error(reply)
    text = reply.final_text[0] if reply.final_text else ""
    return {
        "question_id": doc.specific["question_id"],
        "video_id": doc.specific["video_id"],
        "question_type": doc.specific["question_type"],
        "question": doc.query,
        "answers": list(doc.get_golds()),
        "response": text if error is None else None,
        "caption": doc.specific["caption"] or None,
        **failed(error or ""),
    }


def sample(row: dict, judge: str, self_judged: str | None) -> dict:
    """A judged row as LightEval stores it."""
    return {
        "question_id": row["question_id"],
        "video_id": row["video_id"],
        "question_type": row["question_type"],
        "caption": row["caption"],
        "correct": None if row["correct"] is None else float(row["correct"]),
        "score": row["score"],
        "error": row["error"],
        "reason": row["reason"],
        "probability": row["probability"],
        "scores": None if row["scores"] is None else canonical_json(row["scores"]),
        "judge": judge,
        "self_judged": self_judged,
        "model_revision": RUN.model_revision,
    }


class ClusteredFigures(CorpusLevelComputation):
    """Accuracy and mean score over the answers that have a verdict, with intervals clustered by video."""

    def compute_corpus(self, items: list[dict]) -> dict[str, float]:
        """Flat numbers.

        ``accuracy``, ``accuracy_stderr``, ``accuracy_ci95_lo``, ``accuracy_ci95_hi``; the same of ``score``, the mean
        on the judge's own scale, if it gives such scores; ``unjudged``, a count. What cannot be told (an interval of
        one video, an accuracy without verdicts) is left out.
        """
        judged = [item for item in items if item["correct"] is not None]
        scored = [(json.loads(item["scores"] or "{}").get(SCORE), item["video_id"]) for item in judged]
        scored = [(value, video) for value, video in scored if value is not None]
        return {
            **_figures(METRIC_NAME, [item["correct"] for item in judged], [item["video_id"] for item in judged]),
            **_figures(SCORE, [value for value, _ in scored], [video for _, video in scored]),
            "unjudged": float(len(items) - len(judged)),
        }


def _figures(name: str, values: Sequence[float], videos: Sequence[str]) -> dict[str, float]:
    if not values:
        return {}
    found = cluster_mean(values, videos)
    figures = {"": found.mean, "_stderr": found.se, "_ci95_lo": found.low, "_ci95_hi": found.high}
    return {name + ending: value for ending, value in figures.items() if math.isfinite(value)}


def judged_verdicts() -> SampleLevelMetric:
    """The metric as a task's ``metrics`` entry."""
    return SampleLevelMetric(
        metric_name=METRIC_NAME,
        higher_is_better=True,
        category=SamplingMethod.GENERATIVE,
        sample_level_fn=JudgedVerdict(),
        corpus_level_fn=ClusteredFigures(),
        batched_compute=True,
    )
