"""The config of a release: sections for building, training, evaluating and pushing, checked before anything starts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cards.push.checks import check_names
from cards.push.plan import repo_names
from dataset_builder.errors import KitError


@dataclass(frozen=True)
class WorldConfig:
    """The embedded toy world and the tiny models that are trained on it.

    Attributes:
        clips: clips per split: pretrain, train, validation, test.
        types: question types to ask about.
        questions_per_clip: so many of the types, drawn for each clip; all of them by default.
    """

    clips: dict[str, int]
    types: list[str]
    questions_per_clip: int | None = None

    def __post_init__(self) -> None:
        from dataset_builder.toy import SPLITS, TYPES

        for key, given, known in (("clips", self.clips, SPLITS), ("types", self.types, TYPES)):
            if unknown := [name for name in given if name not in known]:
                raise ValueError(f"{key}: {unknown[0]!r} is not known; there are {', '.join(known)}")


@dataclass(frozen=True)
class EvaluatorConfig:
    """The judge that is released as the evaluator, and what is known of its errors.

    Attributes:
        judge: its specification, as an entry of a build's ``judges``.
        gold: files of gold labels (``python -m eval label`` collects them) on test answers; figures are then debiased.
            A release goes on without a file that is not there yet: labels are made from the results of a first sitting.
        license: of the evaluator's repo, such as that of the weights it carries.
    """

    judge: dict
    gold: list[str] = field(default_factory=list)
    license: str = "apache-2.0"


@dataclass(frozen=True)
class PushConfig:
    """Options of the push at the end, as those of ``python -m cards push``.

    Attributes:
        version: tag of this release without its v; the kit's version by default.
        weights: of LoRA rounds.
        base: what a base that was started from a folder is called on the Hub.
        public: make the repos public when all is read back and tagged.
        allow: strings that are no secrets and no paths.
    """

    version: str | None = None
    weights: Literal["both", "merged", "adapter"] = "both"
    base: str | None = None
    public: bool = False
    allow: list[str] = field(default_factory=list)

    def words(self) -> list[str]:
        """As words of the command line."""
        words = ["--weights", self.weights, *(["--public"] if self.public else [])]
        for name in ("version", "base"):
            if (value := getattr(self, name)) is not None:
                words += [f"--{name}", value]
        return [*words, *(word for text in self.allow for word in ("--allow", text))]


@dataclass(frozen=True)
class ReleaseConfig:
    """One release. Everywhere ``{run}`` stands for the run folder and ``{dataset}`` for the dataset's.

    Attributes:
        build: the dataset, as in a config of ``python -m dataset_builder build`` (name and seed come from here);
            ``config`` names such a file, whose keys the others override.
        training: ``config``, a YAML of ``recipes/iter_w2s.py``, and fields that override it.
        world: makes clips, questions, base, verifier and zoo; without it, ``build`` and ``training`` name them.
        evaluator: the judge that is released; none = no evaluator repo (the toy world has one of its own).
        control: also compare the zoo with its best single member, which is asked as often once more.
        name: what the release is called; the model repo carries it.
        seed: everything that is drawn follows from it.
        run_dir: the run folder.
        dataset: the dataset folder.
        workers: one-thread processes that work side by side where there is parallel work.
        namespace: the Hub user or organisation the repos would go to; none = everything stays here.
        push: how they are pushed.
    """

    build: dict
    training: dict
    world: WorldConfig | None = None
    evaluator: EvaluatorConfig | None = None
    control: bool = True
    name: str = "demo"
    seed: int = 0
    run_dir: str = "runs/demo"
    dataset: str = "mmaip-v"
    workers: int = 2
    namespace: str | None = None
    push: PushConfig = field(default_factory=PushConfig)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError("seed must be 0 or more")
        if self.workers < 1:
            raise ValueError("workers must be at least 1")

    def with_seed(self, seed: int | None) -> ReleaseConfig:
        """The same release with another seed, in a folder of its own so that the default dataset stays."""
        if seed is None:
            return self
        folder = f"{self.run_dir}-seed-{seed}"
        return dataclasses.replace(self, seed=seed, run_dir=folder, dataset=f"{folder}/{Path(self.dataset).name}")

    def filled(self, section: dict) -> dict:
        """A section with ``{run}`` and ``{dataset}`` filled in."""
        return _fill(section, {"{run}": self.run_dir, "{dataset}": self.dataset})

    def build_config(self, file: str = "build"):
        """The dataset's configuration, checked.

        Raises:
            KitError: one line that names the key.
        """
        from dataset_builder.settings import BuildConfig, from_dict, read_yaml

        given = self.filled(self.build)
        other = given.pop("config", None)
        kept = {key: value for key, value in (read_yaml(other) if other else {}).items() if key not in ("name", "seed")}
        section = {**kept, "name": Path(self.dataset).name, "seed": self.seed, **given}
        return from_dict(section, BuildConfig, file, "build")

    @property
    def base(self) -> str | None:
        """The checkpoint or Hub id that training starts from; None where nothing names it."""
        given = self.filled(self.training).get("model_name_or_path")
        made = f"{self.run_dir}/models/base" if self.world is not None else self._recipe("model_name_or_path")
        return given or made

    def training_fields(self) -> dict:
        """Fields of ``recipes/iter_w2s.py`` for the arms, with ``base``, the checkpoint they all start from.

        Without a toy world the build's ``media.json`` finds videos that the dataset does not hold.
        """
        fields = {**self.filled(self.training), "seed": self.seed}
        fields.pop("model_name_or_path", None)
        if self.world is None and self.media is not None:
            fields["media"] = str(self.media)
        return {"base": self.base, **fields}

    @property
    def media(self) -> Path | None:
        """Where the videos are that the dataset may not hold: as training says, else as the build has found them."""
        from dataset_builder.build import work_folder

        said = self.filled(self.training).get("media") or self._recipe("media")
        found = Path(said) if said else work_folder(Path(self.dataset)) / "media.json"
        return found if said or found.is_file() else None

    def judge(self) -> dict | None:
        """Specification of the evaluator's judge; None without one."""
        if self.evaluator is not None:
            return self.filled(self.evaluator.judge)
        if self.world is not None:
            return {"kind": "visual", "model": f"{self.run_dir}/models/verifier", "name": "verifier"}
        return None

    @property
    def gold(self) -> list[str]:
        """Files of gold labels."""
        return _fill(self.evaluator.gold, {"{run}": self.run_dir}) if self.evaluator is not None else []

    def arm_names(self) -> list[str]:
        """The arms that will be compared: named here, else in the training YAML, else the kit's default.

        Raises:
            KitError: one line that names the file and the arm that does not exist.
        """
        from recipes.arms.specs import DEFAULT_ARMS, parse_arms

        source, names = "training", self.training.get("arm_names")
        if names is None:
            source, names = self.training["config"], self._recipe("arm_names")
        names = DEFAULT_ARMS if names is None else names
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise KitError(f"{source}: arm_names: expected a list of names, such as [base, dpo, iter_w2s]")
        try:
            return [arm.name for arm in parse_arms(names)]
        except KitError as error:
            raise KitError(f"{source}: {error}") from None

    def _recipe(self, name: str):
        """A field of the training YAML; None without one."""
        from dataset_builder.settings import read_yaml

        return read_yaml(self.training["config"]).get(name) if self.training.get("config") else None


def _fill(value, names: dict[str, str]):
    if isinstance(value, str):
        for name, path in names.items():
            value = value.replace(name, path)
        return value
    if isinstance(value, dict):
        return {key: _fill(item, names) for key, item in value.items()}
    return [_fill(item, names) for item in value] if isinstance(value, list) else value


def load_config(path: str | Path, seed: int | None = None) -> ReleaseConfig:
    """Read a release config and check every section that can be checked before anything is started.

    Raises:
        KitError: file missing, not YAML, an unknown key, or a value that cannot be used; one line each.
    """
    from dataset_builder.settings import load_yaml, parse_judge

    if seed is not None and seed < 0:
        raise KitError(f"--seed {seed}: must be 0 or more")
    config = load_yaml(path, ReleaseConfig).with_seed(seed)
    built = config.build_config(str(path))
    recipe = config.training.get("config")
    if not recipe:
        raise KitError(f"{path}: training.config: is missing; name a YAML of recipes/iter_w2s.py")
    if not Path(recipe).is_file():
        raise KitError(f"{path}: training.config: there is no file {recipe}")
    if not config.base:
        raise KitError(f"{path}: training.model_name_or_path: is missing (there is no 'world' that would make a base)")
    if config.world is not None and built.imports:
        raise KitError(f"{path}: build.sources: ready-made preference rows need no 'world'; leave one of them out")
    if config.evaluator is not None:
        parse_judge(config.judge(), f"{path}: evaluator.judge")
    try:
        config.arm_names()
        if config.namespace:  # before hours of work, not after
            check_names(config.namespace, repo_names(config.name, Path(config.dataset).name))
    except KitError as error:
        raise KitError(f"{path}: {error}") from None
    return config
