"""What a push would put where: every repo, commit, file and tag. Reads files only; no network, no heavy import.

A repo is a row of states, each of which becomes one commit: the rounds of a model, then the final state that ``main``
shows. Rounds hold weights and what loads them; card, figures and results are in the final state alone, so that a card
can be put right later without touching what ``revision="round-1"`` loads.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cards.push.copies import adapter_config, dataset_card, evaluator_card, model_card, without_paths
from cards.push.extras import EVAL_RESULTS, EVAL_YAML, TRAINING_ARGS, eval_results, eval_yaml, training_args
from cards.run_folder import ADAPTER, Run
from cards.stage_log import fingerprint, read_json
from dataset_builder.errors import KitError
from recipes.validation import FILE as VALIDATION

WEIGHTS = ("both", "merged", "adapter")
CARD, LICENSE = "README.md", "LICENSE"
DATASET_REPO = "dataset_repo"  # key of run.json: the dataset is on the Hub already, under this id
EVALUATOR = "evaluator"  # folder in the run folder, and ending of the repo's name
BASE_TAG = "base"
GOLD = ("results/gold/labels.jsonl", "results/gold/simulated.jsonl")  # without names; what else lies there stays
# Row-level results, from which every figure of the model card can be computed again.
RESULTS = ("results/*.json", f"results/{EVALUATOR}/*.json", *GOLD, "results/validation/*.json")
_TITLE = 60  # characters: the Hub's limit for a collection


@dataclass(frozen=True)
class PlannedFile:
    """One file of a state.

    Attributes:
        path: in the repo.
        source: a local file, or the content itself where the Hub gets another copy than lies here.
        size: bytes.
        sha256: hex digits, of the content.
    """

    path: str
    source: Path | bytes
    size: int
    sha256: str

    @classmethod
    def of(cls, path: str, source: Path | bytes) -> PlannedFile:
        """Measure and hash a file or content."""
        if isinstance(source, bytes):
            return cls(path, source, len(source), hashlib.sha256(source).hexdigest())
        with source.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return cls(path, source, source.stat().st_size, digest)

    @cached_property
    def git_hash(self) -> str:
        """The name git gives the content, 40 hex digits: how a Hub lists files that are no large objects."""
        digest = hashlib.sha1(b"blob %d\0" % self.size)
        digest.update(self.read())
        return digest.hexdigest()

    def read(self) -> bytes:
        """The content."""
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()


@dataclass(frozen=True)
class State:
    """What a repo looks like after one commit.

    Attributes:
        name: ``base``, ``round-N`` or ``final``.
        title: of the commit.
        files: by path.
        tags: put on the commit when everything has been read back.
    """

    name: str
    title: str
    files: dict[str, PlannedFile]
    tags: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:
        """16 hex digits over paths and contents; stands in the commit's message, where a later push finds it."""
        return fingerprint({path: file.sha256 for path, file in self.files.items()})

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())


@dataclass(frozen=True)
class RepoPlan:
    """One repo.

    Attributes:
        kind: ``dataset``, ``model`` or ``evaluator``.
        repo_id: ``NAMESPACE/NAME``.
        states: in the order of their commits; the last is ``main``.
    """

    kind: str
    repo_id: str
    states: list[State]

    @property
    def repo_type(self) -> str:
        """The Hub's word."""
        return "dataset" if self.kind == "dataset" else "model"

    @property
    def final(self) -> State:
        """What ``main`` shows."""
        return self.states[-1]


@dataclass(frozen=True)
class Plan:
    """A whole push.

    Attributes:
        run: what is pushed.
        name: of the release, and of the model repo.
        namespace: user or organisation.
        version: tag of all repos, such as ``v0.1.0``.
        repos: dataset, model and, where there is one, evaluator.
        remarks: lines a person should read.
        dataset: Hub id of the dataset where it is on the Hub already.
    """

    run: Run
    name: str
    namespace: str
    version: str
    repos: list[RepoPlan]
    remarks: list[str] = field(default_factory=list)
    dataset: str | None = None

    @property
    def collection(self) -> str:
        """Title of the collection that ties the repos."""
        return f"{self.name[: _TITLE - 36]}: preferences, model and evaluator"

    def repo(self, kind: str) -> RepoPlan | None:
        """The repo of a kind."""
        return next((repo for repo in self.repos if repo.kind == kind), None)


@dataclass(frozen=True)
class Options:
    """What a person can choose.

    Attributes:
        namespace: user or organisation.
        name: of the release; None takes the run's.
        version: without the ``v``; None takes the kit's.
        weights: ``merged``, ``adapter`` or ``both``, of rounds that were trained with LoRA.
        base: Hub id of the base, where the run was started from a local copy.
        dataset: Hub id of the dataset, where it is on the Hub already and is not pushed; None takes what ``run.json``
            says.
    """

    namespace: str
    name: str | None = None
    version: str | None = None
    weights: str = "both"
    base: str | None = None
    dataset: str | None = None


def make_plan(folder: str | Path, options: Options) -> Plan:
    """Plan a push.

    Args:
        folder: a finished run folder.
        options: see :class:`Options`.

    Raises:
        KitError: the run is not finished, or something of it is missing; one line.
    """
    run = Run(Path(folder))
    name = options.name or run.info.get("name") or run.folder.resolve().name
    version = version_tag(options.version)
    _check_run(run)
    ids = {kind: f"{options.namespace}/{each}" for kind, each in repo_names(name, run.dataset.name).items()}
    given = options.dataset or run.info.get(DATASET_REPO)
    ids |= {"dataset": given} if given else {}
    repos = [] if given else [_dataset_repo(run, ids, version)]
    repos.append(_model_repo(run, ids, name, version if not given else None, version, options))
    remarks = [f"no dataset repo: it is {given} on the Hub"] if given else []
    if (run.folder / EVALUATOR / "config.json").is_file():
        repos.append(_evaluator_repo(run, ids, name, version))
    else:
        remarks.append(f"no evaluator repo: there is no {run.folder / EVALUATOR}")
    return Plan(run, name, options.namespace, version, repos, remarks, given)


def version_tag(version: str | None) -> str:
    """The tag of a version; that of the kit's version without one."""
    from dataset_builder import __version__

    return f"v{(version or __version__).removeprefix('v')}"


def repo_names(name: str, dataset: str) -> dict[str, str]:
    """What the three repos of a release are called, without the namespace."""
    return {"dataset": dataset, "model": name, "evaluator": f"{name}-{EVALUATOR}"}


def _check_run(run: Run) -> None:
    if not (run.dataset / "provenance.json").is_file():
        raise KitError(
            f"{run.dataset}: holds no dataset ({run.folder}/run.json names it, seen from the folder where the release "
            "ran: type the command there)"
        )
    if run.release_folder is None:
        raise KitError(f"{run.folder}: holds no trained arm to release; finish it with python -m cards release")
    built, trained = run.provenance.get("fingerprint"), run.info.get("dataset_fingerprint")
    if built and trained and built != trained:
        raise KitError(
            f"{run.dataset}: is another build ({built}) than the one the run was trained on ({trained}): type "
            "python -m cards release again first"
        )


def _dataset_repo(run: Run, ids: dict[str, str], version: str) -> RepoPlan:
    files = _folder_files(run.dataset)
    if CARD in files:
        files[CARD] = dataset_card(run.dataset / CARD, ids["dataset"])
    if (extra := eval_yaml(run)) is not None:
        files[EVAL_YAML] = extra
    states = [_state("final", f"{run.dataset.name} {version}", files, version)]
    return RepoPlan("dataset", ids["dataset"], states)


def _model_repo(
    run: Run, ids: dict[str, str], name: str, data_version: str | None, version: str, options: Options
) -> RepoPlan:
    arm, last = run.release_arm, run.release_folder
    base = base_of(run, options.base)
    local_base = _local_base(run, ids["model"]) if base is None else None
    named = (base or (ids["model"] if local_base else None), None if base else BASE_TAG)
    states = []
    if local_base is not None:
        states.append(_state(BASE_TAG, f"{name}: the base", _folder_files(local_base), BASE_TAG))
    for number in range(1, int(last.name.removeprefix("round-")) + 1):
        folder = run.folder / "arms" / arm / f"round-{number}"
        if not folder.is_dir():
            raise KitError(f"{folder}: is missing; finish the run with python -m cards release")
        files = _round_files(folder, options.weights, named)
        states.append(_state(f"round-{number}", f"{name}: round {number}", files, f"round-{number}"))
    files = dict(states[-1].files)
    more: dict[str, Path | bytes] = {f"figures/{path.name}": path for path in sorted((last / "figures").glob("*.png"))}
    if (last / CARD).is_file():
        more[CARD] = model_card(
            last / CARD, ids, run.dataset.name, base, options.weights == "adapter", local_base, data_version
        )
    more |= {EVAL_RESULTS: found} if (found := eval_results(run, ids["dataset"], data_version)) is not None else {}
    more[TRAINING_ARGS] = training_args(run, ids["dataset"], base)
    more["arms.json"] = without_paths(run.folder / "arms.json", run)
    for each in run.arms:  # the rows behind every choice on validation
        for path in sorted((run.folder / "arms" / each).glob(f"round-*/{VALIDATION}")):
            more[f"results/validation/{each}-{path.parent.name}.json"] = path
    for pattern in RESULTS:
        for path in sorted(run.folder.glob(pattern)):
            more[str(path.relative_to(run.folder))] = without_paths(path, run, base)
    files |= {path: PlannedFile.of(path, source) for path, source in more.items()}
    states.append(_state("final", f"{name} {version}: card, results", files, version))
    return RepoPlan("model", ids["model"], states)


def _evaluator_repo(run: Run, ids: dict[str, str], name: str, version: str) -> RepoPlan:
    files = _folder_files(run.folder / EVALUATOR)
    if CARD in files:
        files[CARD] = evaluator_card(run.folder / EVALUATOR / CARD, ids["evaluator"])
    states = [_state("final", f"{name}-{EVALUATOR} {version}", files, version)]
    return RepoPlan("evaluator", ids["evaluator"], states)


def base_of(run: Run, given: str | None = None) -> str | None:
    """Hub id of the model that was aligned; None where it was a local folder and nobody says what it is."""
    known = read_json(run.folder / "arms" / ".work" / "job.json", {}).get("config", {}).get("base") or ""
    return given or (known.rsplit("@", 1)[0] if "/" in known and "@" in known else None)


def _local_base(run: Run, model_id: str) -> Path | None:
    """The base that the released adapters need, where the run itself made it: nobody else has it."""
    adapters = run.adapters(run.release_arm)
    if not adapters:
        return None
    folder = Path(adapters[-1]["base"] or "")
    if run.folder.resolve() in folder.resolve().parents and folder.is_dir():
        return folder
    raise KitError(
        f"{adapters[-1]['base']}: the adapters' base lies on this machine only; say with --base NAMESPACE/NAME what it "
        "is called on the Hub, or leave the adapters out with --weights merged"
    )


def _round_files(folder: Path, weights: str, base: tuple[str | None, str | None]) -> dict[str, Path | bytes]:
    """Files of a round: weights, what loads them, what was measured of it."""
    files = {path: source for path, source in _folder_files(folder).items() if not path.startswith("figures/")}
    files.pop(CARD, None)
    adapter = {path: source for path, source in files.items() if path.startswith(f"{ADAPTER}/")}
    if weights == "adapter" and not adapter:
        raise KitError(f"{folder}: has no adapter (the run was not trained with LoRA): leave out --weights adapter")
    config = f"{ADAPTER}/adapter_config.json"
    if config in adapter and base[0] is not None:
        adapter[config] = adapter_config(adapter[config], *base)
    rest = {path: source for path, source in files.items() if path not in adapter}
    if weights == "merged":
        return rest
    if weights == "both":
        return {**rest, **adapter}
    full = ("config.json", "generation_config.json")
    rest = {path: s for path, s in rest.items() if path not in full and not path.startswith("model")}
    return {**rest, **{path.removeprefix(f"{ADAPTER}/"): source for path, source in adapter.items()}}


def _folder_files(folder: Path) -> dict[str, Path | bytes]:
    """Every file below a folder, by its path in it; hidden ones and what Python compiled are nobody's business."""
    found: dict[str, Path | bytes] = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in parts):
            found["/".join(parts)] = path
    return found


def _state(name: str, title: str, files: dict[str, Path | bytes | PlannedFile], *tags: str) -> State:
    planned = {
        path: source if isinstance(source, PlannedFile) else PlannedFile.of(path, source)
        for path, source in sorted(files.items())
    }
    return State(name, title, planned, tags)
