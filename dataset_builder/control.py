"""Zoo against one model: would the best single member, asked as often, have covered as much?

The zoo's answers are those of the build. The single member is the one whose answers match the reference best on the
validation split; its extra samples go through the same stages in the same work folder, under ``control-…`` stage
names, and never enter the dataset. Both are compared on the train split only.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dataset_builder import plan
from dataset_builder.assemble import collect
from dataset_builder.build import RunLog, load_questions, work_folder
from dataset_builder.errors import KitError
from dataset_builder.plan import judge_weights
from dataset_builder.selection.pairs import select_pairs
from dataset_builder.settings import BuildConfig
from dataset_builder.stages import ShardStore, write_json
from dataset_builder.stages.pool import run_stages
from dataset_builder.table import write_questions

_QUESTIONS = "control-questions.arrow"


@dataclass(frozen=True)
class Coverage:
    """One side of the comparison.

    Attributes:
        coverage: share of questions with at least one fully right answer (reference match 1).
        chosen_correct: share of pairs whose chosen answer is fully right; None without pairs.
        questions: questions with a reference.
        pairs: pairs that the build's selection rule finds.
        samples: answers to each question.
    """

    coverage: float
    chosen_correct: float | None
    questions: int
    pairs: int
    samples: int


@dataclass(frozen=True)
class Comparison:
    """Zoo and single member on the train split, and how the member was chosen."""

    zoo: Coverage
    single: Coverage
    member: str
    validation_match: dict[str, float]  # mean reference match on validation, by member

    def to_dict(self) -> dict:
        """``{coverage: {zoo, single}, chosen_correct: {zoo, single}, …}`` with plain values."""
        sides = {"zoo": self.zoo, "single": self.single}
        return {
            "coverage": {name: side.coverage for name, side in sides.items()},
            "chosen_correct": {name: side.chosen_correct for name, side in sides.items()},
            "member": self.member,
            "validation_match": self.validation_match,
            **{name: asdict(side) for name, side in sides.items()},
        }


def reference_match(response: dict, judge: str) -> float | None:
    """The reference judge's ``match`` (0–1) of a stored answer; None when it could not be judged."""
    for score in response["scores"]:
        if score["judge"] == judge and score["criterion"] == "match":
            return score["score"]
    return None


def measure(
    responses: dict[str, list[dict]],
    judge: str,
    min_margin: float,
    weights: dict[str, float] | None,
) -> Coverage:
    """Coverage and share of right chosen answers of stored answers with scores.

    Args:
        responses: by question id, rows of the ``responses`` config; questions without a reference are left out.
        judge: name of the reference judge.
        min_margin: of the pair selection.
        weights: of the pair selection.

    Raises:
        KitError: no question has a reference.
    """
    matches = {
        question: {row["response_id"]: reference_match(row, judge) for row in rows}
        for question, rows in responses.items()
        if any(reference_match(row, judge) is not None for row in rows)
    }
    if not matches:
        raise KitError("no question has a reference answer, so coverage cannot be measured")
    covered = sum(any(value == 1 for value in found.values()) for found in matches.values())
    selection = select_pairs(((q, "train", responses[q]) for q in matches), min_margin, weights)
    right = sum(matches[pair.question_id][pair.chosen] == 1 for pair in selection.pairs)
    return Coverage(
        coverage=covered / len(matches),
        chosen_correct=right / len(selection.pairs) if selection.pairs else None,
        questions=len(matches),
        pairs=len(selection.pairs),
        samples=max(len(responses[question]) for question in matches),
    )


def best_member(responses: list[dict], judge: str) -> tuple[str, dict[str, float]]:
    """The member with the highest mean reference match, and all means; equal means go to the first name.

    Raises:
        KitError: no answer has a reference match.
    """
    values: dict[str, list[float]] = {}
    for row in responses:
        value = reference_match(row, judge)
        if value is not None:
            values.setdefault(row["model"], []).append(value)
    if not values:
        raise KitError("no validation answer has a reference match, so no best member can be chosen")
    means = {name: sum(found) / len(found) for name, found in sorted(values.items())}
    return min(means, key=lambda name: (-means[name], name)), means


def compare_zoo_and_single(
    config: BuildConfig,
    output: Path | str,
    work: Path | str | None = None,
    limit: int | None = None,
    progress: bool = True,
    workers: int = 1,
) -> Comparison:
    """Run the control after a finished build of the same config and compare; resumable like the build.

    Args:
        config: the build's config; needs a reference judge.
        output: the build's dataset folder (it is not changed).
        work: the build's work folder.
        limit: the build's limit.
        progress: show progress bars.
        workers: processes; the result does not depend on it.

    Returns:
        The comparison, also written to ``control.json`` in the work folder.

    Raises:
        KitError: there is no reference judge, no train or validation question with a reference, or no finished build.
    """
    judge = next((spec.name for spec in config.judges if spec.kind == "reference"), None)
    if judge is None:
        raise KitError("the comparison of zoo and single member needs a judge of kind 'reference'")
    work = work_folder(Path(output), work)
    store, weights = ShardStore(work), judge_weights(config)
    with store.lock():
        load_questions(config, limit, work, progress=False)
        job = plan.make_job(config, work)
        answers, splits = {}, {}
        for question, rows in collect(job, weights):
            answers[question["question_id"]], splits[question["question_id"]] = rows, question["split"]
        member, means = best_member(
            [row for question, rows in answers.items() if splits[question] == "validation" for row in rows], judge
        )
        train = (row for row in job.table if row["split"] == "train")
        write_questions(train, work / _QUESTIONS, config.block_size)
        control = replace(plan.make_job(config, work, _QUESTIONS), prefix="control-")
        control.members = [{**m, "samples": control.samples} for m in control.members if m["name"] == member]
        with RunLog(work).stage("control"):
            run_stages(control, workers, progress)
        single = {question["question_id"]: rows for question, rows in collect(control, weights)}
    zoo = {question: rows for question, rows in answers.items() if splits[question] == "train"}
    result = Comparison(
        zoo=measure(zoo, judge, config.pairs.min_margin, weights),
        single=measure(single, judge, config.pairs.min_margin, weights),
        member=member,
        validation_match=means,
    )
    write_json(work / "control.json", result.to_dict())
    return result
