"""A dataset with the zoo's answers and a policy that answers from a table, for the tests of on-policy pairs."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

from datasets import Dataset

from dataset_builder.judges import JudgeItem, ReferenceJudge, aggregate
from dataset_builder.models import ChatReply
from dataset_builder.schema import FEATURES
from recipes.on_policy.builder import OnPolicySettings
from tests.recipes.tiny import make_dataset

REFERENCE = {"kind": "reference"}
KNOWN = OnPolicySettings(judges=(REFERENCE,), samples=2)


def quiet(line: str) -> None:
    """Notes are looked at where a test is about them."""


def write(folder: Path, config: str, rows: list[dict]) -> None:
    """One split of a config, with the real columns."""
    (folder / config).mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=FEATURES[config]).to_parquet(folder / config / "train-00000-of-00001.parquet")


def question_row(question_id: str, video_id: str, question: str, answer: str) -> dict:
    """A row of `questions`."""
    known = {"question_id": question_id, "video_id": video_id, "question": question, "answer": answer}
    return {**dict.fromkeys(FEATURES["questions"]), **known, "answers": [answer]}


def response_row(question: dict, member: str, text: str, judges, flags=()) -> dict:
    """A row of `responses`, judged by real judges."""
    item = JudgeItem(question["question"], question["answers"], None, text)
    scores = [vars(score) for judge in judges for score in judge.score([item])[0]]
    known = {key: question[key] for key in ("question_id", "video_id", "question", "answer")}
    mine = {"response_id": f"{question['question_id']}-{member}", "model": member, "response": text}
    rest = {"flags": list(flags), "scores": scores, "finish_reason": "stop", "score": aggregate(scores)}
    return {**dict.fromkeys(FEATURES["responses"]), **known, **mine, **rest}


def make_world(folder: Path) -> Path:
    """24 questions about 12 clips; one member is always right, one always wrong, one has no pair of its own."""
    folder = make_dataset(folder)
    table = Dataset.from_parquet(str(next((folder / "preferences").glob("train-*"))))
    pairs = table.remove_columns("video").to_list()
    questions = [question_row(p["question_id"], p["video_id"], p["question"], p["answer"]) for p in pairs]
    responses = []
    for question, pair in zip(questions, pairs):
        wrong = pair["rejected"][0]["content"][0]["text"]
        responses.append(response_row(question, "right", question["answer"], [ReferenceJudge()]))
        responses.append(response_row(question, "wrong", wrong, [ReferenceJudge()]))
        responses.append(response_row(question, "cut", "red and", [ReferenceJudge()], ["cut"]))
    write(folder, "questions", questions)
    write(folder, "responses", responses)
    # The last question keeps its clip's video in the other question's pair only.
    table.select(range(len(table) - 1)).to_parquet(next((folder / "preferences").glob("train-*")))
    return folder


class Table:
    """A policy that answers from a table: `{question: [answers in turn]}`, an answer being a text or a reply."""

    name, revision, template_hash = "policy", "r1", "t1"

    def __init__(self, answers):
        self.answers, self.calls = answers, []

    def generate(self, requests, decoding, seed, batch_size=64):
        """The answers of each question in turn, within one call."""
        self.calls.append((seed, len(requests)))
        turn: dict[int, itertools.count] = {}
        replies = []
        for request in requests:
            key = (request.question, id(request.frames))
            said = self.answers(request.question, next(turn.setdefault(key, itertools.count())))
            replies.append(said if isinstance(said, ChatReply) else ChatReply(said, "stop", 1, 1))
        return replies


def always(*texts):
    """A policy that gives these answers to every question."""
    return Table(lambda question, turn: texts[turn % len(texts)])


def text(message) -> str:
    """The text of a message column's only turn."""
    return message[0]["content"][0]["text"]


def colour_questions(builder) -> list[str]:
    """Ids of the questions about colours."""
    return [key for key in builder.question_ids if key.endswith("colour")]


def copied(world: Path, target: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(world, target / "copy"))


def spied(builder) -> list:
    """What the builder's judges receive from now on: (judge, item), scored for real."""
    seen = []
    for judge in builder._judges():
        real = judge.score
        judge.score = lambda items, judge=judge, real=real: (seen.extend((judge.name, i) for i in items), real(items))[
            1
        ]
    return seen
