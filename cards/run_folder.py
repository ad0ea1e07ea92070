"""Reading a run folder: everything a card, a figure or the report says comes through here, from files on disk.

A run folder holds ``run.json``, ``measurements/STAGE.json``, ``arms.json``, ``results/ARM.json``, ``arms/ARM/round-N``
and ``figures/``; ``run.json`` names the dataset folder. What is missing is None or empty, never guessed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cards.stage_log import read_json
from dataset_builder.errors import KitError
from recipes.arms.specs import CONTROLS, SCHEMES

EXTRAPOLATION = "extrapolation.json"  # what `recipes.extrapolate` writes beside weights it made
ADAPTER = "adapter"  # folder of a round that holds its LoRA adapter


@dataclass
class Run:
    """One run folder and the dataset it was trained on.

    Args:
        folder: the run folder.
        dataset: the dataset folder; without it, the one that ``run.json`` names.
    """

    folder: Path
    dataset: Path | None = None

    def __post_init__(self) -> None:
        self.folder = Path(self.folder)
        if self.dataset is None and self.info.get("dataset"):
            self.dataset = Path(self.info["dataset"])
        if self.dataset is None:
            raise KitError(f"{self.folder}/run.json: names no dataset; is this a run folder?")
        self.dataset = Path(self.dataset)

    @cached_property
    def info(self) -> dict:
        """``run.json``."""
        return read_json(self.folder / "run.json", {})

    def measured(self, stage: str) -> dict:
        """What a stage measured; empty when it never ran."""
        return read_json(self.folder / "measurements" / f"{stage}.json", {})

    @cached_property
    def provenance(self) -> dict:
        """``provenance.json`` of the dataset."""
        return read_json(self.dataset / "provenance.json", {})

    @cached_property
    def selection(self) -> dict:
        """``selection.json`` of the dataset."""
        return read_json(self.dataset / "selection.json", {})

    @property
    def toy(self) -> bool:
        """Whether the questions are about the kit's synthetic world."""
        return "toy" in {(row.get("source") or "").split("-")[0] for row in self.questions}

    @property
    def imported(self) -> bool:
        """Whether the pairs came ready-made: nobody sampled or judged an answer for this dataset."""
        return "preferences" in {source.get("kind") for source in self.provenance.get("sources") or []}

    # --- training -----------------------------------------------------------------------------------------------

    @cached_property
    def training(self) -> dict:
        """``arms.json``: the table of arms and how they were compared."""
        return read_json(self.folder / "arms.json", {})

    @property
    def arms(self) -> dict[str, dict]:
        """The arms in the order they are shown: that of the table, else from simple to complex."""
        arms = self.training.get("arms", {})
        order = [name for name in self.training.get("order") or sorted(arms, key=_complexity) if name in arms]
        return {name: arms[name] for name in [*order, *(name for name in arms if name not in order)]}

    @property
    def release_arm(self) -> str | None:
        """The arm that is released: as ``run.json`` says, else the DPO arm that is best on validation."""
        return self.info.get("release_arm") or choose_release_arm(self.arms, list(self.arms))

    @property
    def release_folder(self) -> Path | None:
        """The last round of the released arm."""
        return last_round(self.folder, self.release_arm) if self.release_arm else None

    def rounds(self, arm: str) -> list[dict]:
        """``metrics.json`` of every round of an arm, in order."""
        found = []
        for number in range(1, 1000):
            metrics = read_json(self.folder / "arms" / arm / f"round-{number}" / "metrics.json")
            if metrics is None:
                return found
            found.append(metrics)
        return found

    @property
    def extrapolation(self) -> dict:
        """How far each module of the released round moved; empty unless `recipes.extrapolate` left a report there."""
        return read_json(self.release_folder / EXTRAPOLATION, {}) if self.release_folder else {}

    def adapters(self, arm: str) -> list[dict]:
        """The LoRA adapters that an arm's rounds hold: round, rank, alpha, modules, base, bytes; empty without any."""
        found = []
        for number, _ in enumerate(self.rounds(arm), 1):
            folder = self.folder / "arms" / arm / f"round-{number}" / ADAPTER
            config = read_json(folder / "adapter_config.json")
            if config is None:
                continue
            ranks = {config.get("r"), *(config.get("rank_pattern") or {}).values()} - {None}
            modules = config.get("target_modules") or []
            found.append(
                {
                    "round": number,
                    "rank": sorted(ranks),
                    "lora_alpha": config.get("lora_alpha"),
                    "modules": modules if isinstance(modules, str) else sorted({m.split(".")[-1] for m in modules}),
                    "base": config.get("base_model_name_or_path"),
                    "bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
                }
            )
        return found

    def results(self, arm: str) -> dict:
        """``results/ARM.json``; empty when the arm was not evaluated."""
        return read_json(self.folder / "results" / f"{arm}.json", {})

    @property
    def clean_accuracy(self) -> dict[str, float]:
        """Accuracy of the base before its bias, for the question types that are asked; empty when not measured."""
        models = self.measured("models")
        clean = models.get("models", {}).get("base", {}).get("accuracy_before_bias", {})
        return {kind: clean[kind] for kind in models.get("types_used", clean) if kind in clean}

    # --- the dataset --------------------------------------------------------------------------------------------

    def rows(self, config: str, columns: list[str] | None = None, split: str | None = None) -> list[dict]:
        """Rows of one config of the dataset, all splits unless one is named; without the codecs ``datasets`` may want.

        A column that the files do not have is left out.
        """
        import pyarrow.parquet as parquet

        rows = []
        for file in sorted((self.dataset / config).glob(f"{split or '*'}-*.parquet")):
            table = parquet.ParquetFile(file)
            names = [name for name in columns or table.schema_arrow.names if name in table.schema_arrow.names]
            rows += table.read(columns=names).to_pylist()
        return rows

    @cached_property
    def pairs(self) -> list[dict]:
        """The preference pairs, without videos and messages."""
        columns = ["question_id", "response_id_chosen", "response_id_rejected", "video_id", "question", "answer"]
        columns += ["model_chosen", "model_rejected", "score_chosen", "score_rejected", "margin"]
        return self.rows("preferences", columns)

    @cached_property
    def pair_texts(self) -> list[dict]:
        """Of every pair the texts ``chosen`` and ``rejected``, and ``video_id``."""
        pairs = self.rows("preferences", ["video_id", "chosen", "rejected"])
        for pair in pairs:
            for side in ("chosen", "rejected"):
                pair[side] = "".join(part["text"] or "" for part in pair[side][-1]["content"])
        return pairs

    @cached_property
    def responses(self) -> list[dict]:
        """All answers of the zoo with every score."""
        columns = ["response_id", "question_id", "video_id", "answer", "model", "model_revision", "sampling"]
        return self.rows("responses", [*columns, "response", "flags", "scores", "score"])

    @cached_property
    def questions(self) -> list[dict]:
        """All questions."""
        return self.rows("questions", ["question_id", "video_id", "question", "question_type", "license", "source"])

    @cached_property
    def question_types(self) -> dict[str, str]:
        """Type by question id; empty where a question has none."""
        return {row["question_id"]: row.get("question_type") or "" for row in self.questions}

    @cached_property
    def train_answers(self) -> dict[str, list[dict]]:
        """The answers of each question of the train split."""
        train = {row["question_id"] for row in self.rows("questions", ["question_id"], "train")}
        found: dict[str, list[dict]] = defaultdict(list)
        for row in self.responses:
            if row["question_id"] in train:
                found[row["question_id"]].append(row)
        return dict(found)

    @cached_property
    def videos_held(self) -> dict[str, bool]:
        """By video id, whether rows hold its bytes; see `cards.dataset_videos`."""
        from cards.dataset_videos import videos_held

        return videos_held(self.dataset)

    @cached_property
    def counts(self) -> dict[str, int]:
        """Clips, questions, answers and pairs as they stand in the dataset folder."""
        return {
            "clips": len({row["video_id"] for row in self.questions}),
            "questions": len(self.questions),
            "answers": len(self.responses),
            "pairs": len(self.pairs),
        }

    @cached_property
    def split_rows(self) -> dict[str, dict[str, int]]:
        """Rows per config and split."""
        import pyarrow.parquet as parquet

        found: dict[str, dict[str, int]] = {}
        for config in ("preferences", "benchmark", "responses", "questions"):
            splits: Counter = Counter()
            for file in sorted((self.dataset / config).glob("*.parquet")):
                splits[file.name.split("-")[0]] += parquet.read_metadata(file).num_rows
            found[config] = {name: splits[name] for name in ("train", "validation", "test") if splits[name]}
        return found

    @property
    def drops(self) -> dict[str, int]:
        """Questions that gave no pair, by reason."""
        return self.measured("dataset").get("drops", {})

    @cached_property
    def zoo(self) -> list[dict]:
        """One row per member: revisions, answers, mean score, how often chosen and rejected, share of pairs it won.

        An endpoint may serve another revision in the middle of a build: all of them are named.
        """
        answers, scores, revisions = Counter(), defaultdict(list), defaultdict(set)
        for row in self.responses:
            answers[row["model"]] += 1
            revisions[row["model"]].update(filter(None, [row.get("model_revision")]))
            if row.get("score") is not None:
                scores[row["model"]].append(row["score"])
        chosen = Counter(pair["model_chosen"] for pair in self.pairs)
        rejected = Counter(pair["model_rejected"] for pair in self.pairs)
        table = []
        for name in sorted(answers):
            played, own = chosen[name] + rejected[name], scores[name]
            table.append(
                {
                    "name": name,
                    "revisions": sorted(revisions[name]),
                    "answers": answers[name],
                    "score": sum(own) / len(own) if own else None,
                    "chosen": chosen[name],
                    "rejected": rejected[name],
                    "win_rate": chosen[name] / played if played else None,
                }
            )
        return table

    @cached_property
    def judge_scores(self) -> dict[str, dict[str, list[float]]]:
        """Scores by judge and criterion (``judge · criterion``), then by member, normalised by the declared range."""
        from cards.dataset_stats import criterion_scores

        return criterion_scores(self.responses)

    @cached_property
    def judges(self) -> list[dict]:
        """One row per judge: criteria, ranges, revision, settings, scores given and failed."""
        found: dict[str, dict] = {}
        for row in self.responses:
            for score in row.get("scores") or []:
                judge = found.setdefault(
                    score["judge"],
                    {
                        "name": score["judge"],
                        "revision": score.get("judge_revision"),
                        "settings_hash": score.get("settings_hash"),
                        "criteria": [],
                        "scores": 0,
                        "errors": 0,
                    },
                )
                criterion = f"{score['criterion']} ({score['low']:g}–{score['high']:g})"
                if criterion not in judge["criteria"]:
                    judge["criteria"].append(criterion)
                judge["scores" if score["score"] is not None else "errors"] += 1
        return list(found.values())


def may_be_released(name: str, arm: dict) -> bool:
    """Whether an arm is a trained one: no control, and not one that was stopped before it kept a round."""
    return name.split("+")[0] not in CONTROLS and arm.get("steps") != 0


def choose_release_arm(arms: dict[str, dict], order: Sequence[str] | None = None) -> str | None:
    """The arm with the highest validation accuracy among those that may be released.

    Args:
        arms: by name, each with ``validation_accuracy`` (None when it was not measured).
        order: the simpler of two arms first; it decides ties. By default the order of schemes in `recipes.arms.specs`,
            without suffixes first.

    Returns:
        The arm's name; None when no arm may be released.
    """
    order = list(order or sorted(arms, key=_complexity))
    known = [
        name
        for name in order
        if name in arms and may_be_released(name, arms[name]) and arms[name].get("validation_accuracy") is not None
    ]
    return max(known, key=lambda name: arms[name]["validation_accuracy"]) if known else None


def _complexity(name: str) -> tuple[int, int]:
    """Number of suffixes, then the place among the schemes; what is not known comes last."""
    scheme, *suffixes = name.split("+")
    return len(suffixes), list(SCHEMES).index(scheme) if scheme in SCHEMES else len(SCHEMES)


def last_round(folder: Path, arm: str) -> Path | None:
    """``arms/ARM/round-T`` with the largest T; None when the arm left no round."""
    rounds = [path for path in (folder / "arms" / arm).glob("round-*") if path.name[6:].isdigit()]
    return max(rounds, key=lambda path: int(path.name[6:])) if rounds else None
