"""Pairs from the current model's own mistakes, judged and compared by the dataset builder as a library.

A round of on-policy training samples fresh answers from the model as it is, judges them beside the zoo's stored answers
and pairs, for every question, the model's own worst answer (rejected) with the best answer there is (chosen). Questions
on which the model makes no mistake are left out: there is nothing to unlearn.

What counts as the builder counts it: flags, the judges common to all candidates of a question, their weights, the
aggregate. One thing differs. The builder leaves malformed answers (empty, cut, refusals) out. An own answer that is
malformed is an error of the model that training should see: it has the aggregate 0, is never sent to a judge, may be
rejected and is never chosen.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch

from dataset_builder.errors import KitError
from dataset_builder.judges import Judge, JudgeItem, judge_values, make_judge
from dataset_builder.models import Decoding
from dataset_builder.selection.pairs import EXCLUDING_FLAGS, IDENTICAL, MARGIN, TIE, common_score, select_pair
from dataset_builder.settings import VisualJudgeConfig, parse_judge
from dataset_builder.stages.clips import batch_size as requests_at_once
from dataset_builder.stages.local import model_room
from dataset_builder.text import normalise
from eval.runner import MediaIndex
from recipes.on_policy.answers import blocks, sample_own
from recipes.on_policy.pool import Answer, Pool, Question, VerdictMemory

# A batch of other company moves a score by about 1e-7; what differs less than this is a tie, so that the company of an
# answer decides nothing.
_TIE_DIGITS = 6
_DIGITS = 9

# Why a question gives no pair.
NO_OWN_ERROR = "no_own_error"  # no own answer is below error_below
NO_MARGIN = "no_margin"  # no answer that says something else has a higher aggregate (or, from the zoo, high enough)
NO_VERDICT = "no_verdict"  # no answer could be sampled or judged, or no judge scored all candidates
COUNTS = ("questions", "sampled", "judge_calls", "judge_reused", NO_OWN_ERROR, NO_MARGIN, NO_VERDICT, "pairs")


@dataclass(frozen=True)
class OnPolicySettings:
    """How own answers are sampled and judged.

    Attributes:
        judges: judge specs as in a build's YAML (``kind``, ``name``, ``model`` …).
        samples: own answers per question.
        temperature, top_p, max_new_tokens, num_frames: of the sampling; see
            :class:`~dataset_builder.models.Decoding`.
        error_below: an own answer with an aggregate (0–1) below this is an error.
        judge_names: only these judges count, and only these are made and asked; None counts all of ``judges``.

    Raises:
        KitError: a value is out of range, a judge spec is wrong, or two judges have one name.
    """

    judges: tuple[dict, ...]
    samples: int = 4
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 16
    num_frames: int = 8
    error_below: float = 0.5
    judge_names: tuple[str, ...] | None = None

    def __post_init__(self):
        if self.samples < 1:
            raise KitError(f"samples is {self.samples}: at least one own answer per question is needed")
        if not 0 < self.error_below <= 1:
            raise KitError(f"error_below is {self.error_below}: it must be above 0 and at most 1")
        if self.judge_names is not None and not self.judge_names:
            raise KitError("judge_names is empty: name at least one judge, or leave it out to count all")
        try:
            self.decoding()
        except ValueError as error:
            raise KitError(f"sampling of own answers: {error}") from None
        names = Counter(config.name for config in self.configs())
        if twice := [name for name, times in names.items() if times > 1]:
            raise KitError(f"judges: two of them are called '{twice[0]}'; give them different names")

    def decoding(self) -> Decoding:
        """The sampling as the chat interface takes it."""
        return Decoding(self.temperature, self.top_p, self.max_new_tokens, self.num_frames)

    def configs(self) -> list:
        """The judges' settings, checked."""
        found = []
        for spec in self.judges:
            if spec.get("kind") == "pairwise":
                raise KitError("judges: a 'pairwise' judge gives no score per answer; use reference, visual or vlm")
            found.append(parse_judge(dict(spec)))
        return found


@dataclass
class BuiltPairs:
    """Pairs to train on, and what became of every question.

    Attributes:
        rows: what training reads of the ``preferences`` config, in the order of the question ids.
        counts: ``questions = pairs + no_own_error + no_margin + no_verdict``; ``sampled`` answers were generated;
            ``judge_calls`` verdicts, one a judge and text, were needed beyond those that the dataset holds
            (fewer are asked when an earlier round or another arm has asked them); ``judge_reused`` verdicts on own
            answers are the dataset's.
        pairs: the same pairs as plain values, without videos.
    """

    rows: datasets.Dataset
    counts: dict[str, int]
    pairs: list[dict[str, Any]]

    def save(self, path: str | Path) -> None:
        """Write pairs and counts as JSON (no videos), whole or not at all; :meth:`PairBuilder.load` reads it."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.tmp")
        new.write_text(json.dumps({"counts": self.counts, "pairs": self.pairs}, indent=1) + "\n", encoding="utf-8")
        new.replace(path)


class PairBuilder:
    """Builds pairs for one split of one dataset; keeps decoded clips and verdicts over rounds and arms.

    Args:
        dataset: a dataset folder or a Hub id, with the configs ``questions`` and ``responses``.
        split: such as ``train``.
        settings: how to sample and judge.
        media: a person's own copies, for datasets that hold no videos.
        device: where judges with a model of their own run; they are loaded when they are first asked.
        batch_size: most answers judged at once. Own answers are sampled in blocks that depend on settings and clips
            alone, so this changes no answer.
        log: where notes go.

    Attributes:
        question_ids: all questions whose clip can be had, sorted.
        verdicts: what judges said so far; ``save`` and ``load`` carry it over to another process.

    Raises:
        KitError: the dataset cannot be used, or a judge that shall count is neither described nor known to it.
    """

    def __init__(
        self,
        dataset: str,
        split: str,
        settings: OnPolicySettings,
        media: MediaIndex | None = None,
        device: str = "cpu",
        batch_size: int = 64,
        log: Callable[[str], None] = print,
    ):
        self.settings, self.device, self.batch_size, self.log = settings, device, batch_size, log
        self.pool = Pool(dataset, split, media)
        self.question_ids: list[str] = sorted(self.pool.questions)
        self.verdicts = VerdictMemory()
        configs = {config.name: config for config in settings.configs()}
        self._names = settings.judge_names or tuple(configs) or tuple(sorted(self.pool.stored_judges))
        if unknown := [name for name in self._names if name not in configs and name not in self.pool.stored_judges]:
            known = ", ".join(sorted({*configs, *self.pool.stored_judges})) or "none"
            raise KitError(f"{dataset}: no judge is called '{unknown[0]}'; there are: {known}")
        self._configs = {name: configs[name] for name in self._names if name in configs}
        self._weights = {name: config.weight for name, config in configs.items()}
        self._made: list[Judge] | None = None
        if self.pool.left_out:
            log(f"note: {self.pool.left_out} questions of '{split}' have no video here and are left out")

    def on_policy(self, chat: Any, question_ids: Iterable[str], seed: int) -> BuiltPairs:
        """Sample, judge and pair: rejected is the model's own worst answer, chosen the best of zoo and own.

        Args:
            chat: the model as it is now, behind the chat interface (``generate``, ``name``, ``revision``,
                ``template_hash``).
            question_ids: some of :attr:`question_ids`, in any order.
            seed: of the sampling.

        Returns:
            The pairs. A question is dropped when nothing could be judged (``no_verdict``), when no own answer is below
            ``error_below`` (``no_own_error``), and when no answer that says something else beats the worst
            (``no_margin``). Equal aggregates go by the answer's text (rejected) or a hash of it (chosen).

        Raises:
            KitError: an unknown question, a judge that cannot be loaded, or one that is named but not described.
        """
        judges = self._judges()
        asked, counts = self._asked(question_ids), Counter()
        settings = self.settings
        own = sample_own(chat, self.pool.clips, asked, settings.samples, settings.decoding(), seed, self.log)
        counts["sampled"] = sum(map(len, own.values()))
        self._judge(judges, asked, own, counts)
        pairs = []
        for question in asked:
            pair, drop = self._pair(question, judges, own[question.question_id])
            counts[drop or "pairs"] += 1
            if pair:
                pairs.append(pair)
        return self._built(pairs, counts, len(asked))

    def from_zoo(self, question_ids: Iterable[str] | None = None, min_margin: float = 0.1) -> BuiltPairs:
        """Pairs from the zoo's stored answers and scores alone, by the judges that count; nothing is asked.

        Args:
            question_ids: some of :attr:`question_ids`; all of them when left out.
            min_margin: least difference of the aggregates.
        """
        pairs, counts = [], Counter()
        asked = self._asked(self.question_ids if question_ids is None else question_ids)
        for question in asked:
            zoo = {answer.response_id: answer for answer in self.pool.zoo.get(question.question_id, ())}
            rows = [
                {
                    "response_id": answer.response_id,
                    "response": answer.text,
                    "flags": sorted(EXCLUDING_FLAGS)[:1] if answer.malformed else [],
                    "scores": _scores({name: answer.values.get(name) for name in self._names}),
                }
                for answer in zoo.values()
            ]
            outcome = select_pair(question.question_id, rows, min_margin, self._weights)
            if outcome.pair is None:
                counts[NO_MARGIN if outcome.drop in (IDENTICAL, TIE, MARGIN) else NO_VERDICT] += 1
                continue
            counts["pairs"] += 1
            found = outcome.pair
            chosen, rejected = zoo[found.chosen], zoo[found.rejected]
            pairs.append(_pair_row(question, chosen, rejected, found.score_chosen, found.score_rejected))
        return self._built(pairs, counts, len(asked))

    def load(self, path: str | Path) -> BuiltPairs:
        """Read what :meth:`BuiltPairs.save` wrote; the rows are the same, videos included.

        Raises:
            KitError: the file is damaged, or of another dataset.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            pairs, counts = content["pairs"], content["counts"]
            return BuiltPairs(self.pool.rows(pairs), counts, pairs)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise KitError(f"{path}: is not a file of pairs of this dataset ({error}); delete it") from None

    def _asked(self, question_ids: Iterable[str]) -> list[Question]:
        """The questions, sorted by id, each once."""
        wanted = sorted(set(question_ids))
        if unknown := [name for name in wanted if name not in self.pool.questions]:
            raise KitError(
                f"{self.pool.dataset}: split '{self.pool.split}' has no question '{unknown[0]}' with a video"
            )
        return [self.pool.questions[name] for name in wanted]

    def _judges(self) -> list[Judge]:
        """The judges that count; loaded once. The zoo's verdicts by exactly these judges are taken over."""
        if self._made is None:
            if missing := [name for name in self._names if name not in self._configs]:
                raise KitError(f"judges: '{missing[0]}' shall judge own answers, but no entry describes it")
            # A judge without weight is only shown in a dataset; here nobody would look.
            configs = [config for config in self._configs.values() if config.weight > 0]
            if not configs:
                raise KitError("judges: own answers need at least one judge with a weight above 0")
            with model_room(torch.get_num_threads()):
                made = [make_judge(config, device=self.device) for config in configs]
            for judge in made:
                answers = [(key, answer) for key, found in self.pool.zoo.items() for answer in found]
                lent = sum(self.verdicts.lend(judge, key, answer) for key, answer in answers)
                if lent < len(answers):
                    self.log(
                        f"note: {len(answers) - lent} of {len(answers)} zoo answers hold no verdict of judge "
                        f"'{judge.name}' as it is now; it is asked about them when they are needed"
                    )
            self._made = made
        return self._made

    def _judge(self, judges: list[Judge], asked: list[Question], own: dict[str, list[Answer]], counts: Counter) -> None:
        """Ask every judge about every text that it has not judged yet."""
        for judge in judges:
            config = self._configs[judge.name]
            informed = getattr(config, "use_references", not isinstance(config, VisualJudgeConfig))
            open_: list[tuple[Question, str]] = []
            for question in asked:
                key = question.question_id
                if not own[key]:
                    continue  # nothing to compare, so nothing to ask
                texts = dict.fromkeys(answer.text for answer in own[key] if not answer.malformed)
                counts["judge_reused"] += sum(self.verdicts.lent(judge, key, text) for text in texts)
                texts.update(dict.fromkeys(a.text for a in self.pool.zoo.get(key, ()) if not a.malformed))
                counts["judge_calls"] += sum(not self.verdicts.lent(judge, key, text) for text in texts)
                open_ += [(question, text) for text in sorted(texts) if not self.verdicts.knows(judge, key, text)]
            open_.sort(key=lambda entry: (entry[0].video_id, entry[0].question_id, entry[1]))
            for chunk in blocks(open_, self.batch_size):
                self._ask(judge, informed, chunk)

    def _ask(self, judge: Judge, informed: bool, chunk: Sequence[tuple[Question, str]]) -> None:
        items = []
        for question, text in chunk:
            clip = self.pool.clips.frames(question.video_id, judge.num_frames) if judge.needs_frames else None
            # Only a judge that says that it uses references is shown them.
            answers = list(question.answers) if informed else []
            frames = None if isinstance(clip, KitError) else clip
            items.append(JudgeItem(question=question.question, answers=answers, frames=frames, response=text))
        size = min(self.batch_size, requests_at_once([item.frames for item in items]))
        for start in range(0, len(items), size):
            for (question, text), scores in zip(
                chunk[start : start + size], judge.score(items[start : start + size]), strict=True
            ):
                self.verdicts.put(judge, question.question_id, text, judge_values(scores)[judge.name])

    def _pair(
        self, question: Question, judges: list[Judge], own: list[Answer]
    ) -> tuple[dict[str, Any] | None, str | None]:
        """The pair of one question, or why there is none."""
        key = question.question_id
        if not own:
            return None, NO_VERDICT
        usable = [answer for answer in (*self.pool.zoo.get(key, ()), *own) if not answer.malformed]
        values = {text: {j.name: self.verdicts.get(j, key, text) for j in judges} for text in {a.text for a in usable}}
        scored = {text: {name for name, value in found.items() if value is not None} for text, found in values.items()}
        candidates = [answer for answer in usable if scored[answer.text]]
        common = set.intersection(*(scored[answer.text] for answer in candidates)) if candidates else set()
        if usable and not common:
            return None, NO_VERDICT
        score = {
            answer.text: common_score({"scores": _scores(values[answer.text])}, common, self._weights)
            for answer in candidates
        }
        mistakes = [(0.0 if a.malformed else score[a.text], a) for a in own if a.malformed or a.text in score]
        if not mistakes:
            return None, NO_VERDICT
        low, rejected = min(mistakes, key=lambda found: (round(found[0], _TIE_DIGITS), found[1].text, _place(found[1])))
        if low >= self.settings.error_below:
            return None, NO_OWN_ERROR
        said = normalise(rejected.text)
        better = [
            answer
            for answer in candidates
            if round(score[answer.text], _TIE_DIGITS) > round(low, _TIE_DIGITS) and normalise(answer.text) != said
        ]
        if not better:
            return None, NO_MARGIN
        chosen = min(better, key=lambda a: (-round(score[a.text], _TIE_DIGITS), _lot(key, a.text), _place(a)))
        return _pair_row(question, chosen, rejected, score[chosen.text], low), None

    def _built(self, pairs: list[dict[str, Any]], counts: Counter, questions: int) -> BuiltPairs:
        counts["questions"] = questions
        return BuiltPairs(self.pool.rows(pairs), {name: counts[name] for name in COUNTS}, pairs)


def _scores(values: dict[str, float | None]) -> list[dict[str, Any]]:
    """A judge's value as a score of its own, which aggregates to the same number."""
    return [{"judge": name, "score": value, "low": 0.0, "high": 1.0} for name, value in values.items()]


def _place(answer: Answer) -> tuple[bool, str]:
    """Who of those that said the same stands in the row: the zoo first."""
    return answer.own, answer.response_id


def _lot(question_id: str, text: str) -> str:
    """Orders equally good answers without favouring an alphabet, a member or a length."""
    return hashlib.sha256(f"{question_id}\0{text}".encode()).hexdigest()


def _pair_row(question: Question, chosen: Answer, rejected: Answer, high: float, low: float) -> dict[str, Any]:
    return {
        "question_id": question.question_id,
        "response_id_chosen": chosen.response_id,
        "response_id_rejected": rejected.response_id,
        "text_chosen": chosen.text,
        "text_rejected": rejected.text,
        "model_chosen": chosen.model,
        "model_rejected": rejected.model,
        "score_chosen": high,
        "score_rejected": low,
        "margin": round(high - low, _DIGITS),
    }
