"""The whole road from one config: world, models, dataset, control, arms, figures, cards, report, summary.

``python -m cards release CONFIG.yaml`` runs the stages in order, skips what is done, and can be stopped at any moment:
the same command goes on from there. ``--dry-run`` says what would be made and pushed and starts nothing.
"""

from __future__ import annotations

import dataclasses
import signal
from dataclasses import dataclass
from pathlib import Path

from cards.push.checks import check_names
from cards.push.plan import repo_names
from cards.stage_log import StageLog
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
class ReleaseConfig:
    """One release. In ``build`` and ``training``, ``{run}`` stands for the run folder, ``{dataset}`` for the dataset's.

    Attributes:
        build: the dataset, as in a config of ``python -m dataset_builder build`` (name and seed come from here).
        training: ``config``, a YAML of ``recipes/iter_w2s.py``, and fields that override it.
        world: makes clips, questions, base, verifier and zoo; without it, ``build`` and ``training`` name them.
        name: what the release is called; the model repo carries it.
        seed: everything that is drawn follows from it.
        run_dir: the run folder.
        dataset: the dataset folder.
        workers: one-thread processes that work side by side where there is parallel work.
        namespace: the Hub user or organisation the repos would go to; none = everything stays here.
    """

    build: dict
    training: dict
    world: WorldConfig | None = None
    name: str = "demo"
    seed: int = 0
    run_dir: str = "runs/demo"
    dataset: str = "mmaip-v"
    workers: int = 2
    namespace: str | None = None

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
        from dataset_builder.settings import BuildConfig, from_dict

        section = {"name": Path(self.dataset).name, "seed": self.seed, **self.filled(self.build)}
        return from_dict(section, BuildConfig, file, "build")

    def training_fields(self) -> dict:
        """Fields of ``recipes/iter_w2s.py`` for the arms, with ``base``, the checkpoint they all start from."""
        fields = {**self.filled(self.training), "seed": self.seed}
        return {"base": fields.pop("model_name_or_path", f"{self.run_dir}/models/base"), **fields}

    def arm_names(self) -> list[str]:
        """The arms that will be compared: named here, else in the training YAML, else the kit's default.

        Raises:
            KitError: one line that names the file and the arm that does not exist.
        """
        from dataset_builder.settings import read_yaml
        from recipes.arms.specs import DEFAULT_ARMS, parse_arms

        source, names = "training", self.training.get("arm_names")
        if names is None:
            source = self.training["config"]
            names = read_yaml(source).get("arm_names")
        names = DEFAULT_ARMS if names is None else names
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise KitError(f"{source}: arm_names: expected a list of names, such as [base, dpo, iter_w2s]")
        try:
            return [arm.name for arm in parse_arms(names)]
        except KitError as error:
            raise KitError(f"{source}: {error}") from None


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
    from dataset_builder.settings import load_yaml

    if seed is not None and seed < 0:
        raise KitError(f"--seed {seed}: must be 0 or more")
    config = load_yaml(path, ReleaseConfig).with_seed(seed)
    config.build_config(str(path))
    recipe = config.training.get("config")
    if not recipe:
        raise KitError(f"{path}: training.config: is missing; name a YAML of recipes/iter_w2s.py")
    if not Path(recipe).is_file():
        raise KitError(f"{path}: training.config: there is no file {recipe}")
    if config.world is None and "model_name_or_path" not in config.training:
        raise KitError(f"{path}: training.model_name_or_path: is missing (there is no 'world' that would make a base)")
    try:
        config.arm_names()
        if config.namespace:  # before hours of work, not after
            check_names(config.namespace, repo_names(config.name, Path(config.dataset).name))
    except KitError as error:
        raise KitError(f"{path}: {error}") from None
    return config


def plan(config: ReleaseConfig) -> str:
    """What a release would make and push, as text. Reads the config only."""
    run, built, arms = config.run_dir, config.build_config(), config.arm_names()
    members, judges = [member.name for member in built.zoo], [judge.name for judge in built.judges]
    makes = []
    if config.world is not None:
        clips = ", ".join(f"{n:,} {split}" for split, n in config.world.clips.items())
        makes.append((f"{run}/toy/", f"clips ({clips}), questions and their truth"))
        makes.append((f"{run}/models/", f"base, verifier, zoo/{{{','.join(members)}}}"))
    makes += [
        (
            f"{config.dataset}/",
            f"preferences, benchmark, responses, questions; judged by {', '.join(judges)}; card",
        ),
        (f"{run}/arms/", f"{', '.join(arm for arm in arms if arm != 'base')}: round-N folders; model card in the last"),
        (f"{run}/evaluator/", "the judge that watches the video, with its weights, tasks and card"),
        (f"{run}/results/", f"answers and verdicts of {'each of them' if len(arms) > 8 else ', '.join(arms)}"),
        (f"{run}/figures/", "PNG and SVG"),
        (f"{run}/", "run.json, arms.json, report.html, summary.json"),
    ]
    where = config.namespace or "NAMESPACE"
    pushes = [
        ("dataset", f"{where}/{Path(config.dataset).name}", f"{config.dataset}/: README.md, figures, Parquet, JSON"),
        ("model", f"{where}/{config.name}", f"{run}/arms/RELEASE_ARM/round-N/: one tag a round, card on the last"),
        ("evaluator", f"{where}/{config.name}-evaluator", f"{run}/evaluator/: judge, weights, tasks, card"),
    ]
    left, middle = max(len(path) for path, _ in makes), max(len(repo) for _, repo, _ in pushes)
    title = "would push" if config.namespace else "would push (no namespace is given, so nothing leaves this machine)"
    return "\n".join(
        [
            f"release {config.name}, seed {config.seed}: dry run, nothing is started, written or sent",
            "would make",
            *(f"  {path:<{left}}  {what}" for path, what in makes),
            title,
            *(f"  {kind:<9}  {repo:<{middle}}  {files}" for kind, repo, files in pushes),
        ]
    )


def release(config: ReleaseConfig, overwrite: bool = False, say=print) -> dict:
    """Walk the whole road.

    Args:
        config: see :class:`ReleaseConfig`.
        overwrite: replace a dataset folder that was made from another config.
        say: where headlines and tables go.

    Returns:
        The content of ``summary.json``.
    """
    from cards import steps
    from cards.summary import summary_text, write_summary

    previous = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with StageLog(Path(config.run_dir), say) as log:
            if config.world is not None:
                steps.world(config, log)
                steps.models(config, log)
            steps.dataset(config, log, overwrite)
            steps.control(config, log)
            steps.arms(config, log)
            run = steps.run_file(config)
            if config.world is not None:  # elsewhere nobody has said which judge should watch
                steps.evaluator(config, log, run)
            steps.figures(config, log, run)
            steps.cards(config, log, run)
            steps.report(config, log, run)
            summary = write_summary(run, log)
            say(summary_text(run, summary))
            return summary
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _stop(*_signal) -> None:
    """Ctrl-C and a polite kill mean the same. Workers end first, or their pool would finish its whole queue."""
    import multiprocessing

    for worker in multiprocessing.active_children():
        worker.terminate()
    raise KeyboardInterrupt
