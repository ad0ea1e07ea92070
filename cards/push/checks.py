"""What has to be right before anything leaves. Everything that is wrong is told at once, a line each."""

from __future__ import annotations

import math
import pickletools
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from cards.dataset_videos import why_not_passed_on
from cards.push.copies import split_card
from cards.push.leaks import SHOWN, Leaks
from cards.push.plan import CARD, Plan, PlannedFile, RepoPlan
from cards.run_folder import Run
from dataset_builder.errors import KitError

# https://huggingface.co/docs/hub/storage-limits
SMALL = 10 * 2**20  # bytes
FILE_LIMIT = 50 * 10**9  # bytes
FILES, ENTRIES = 100_000, 10_000  # in a repo, in a folder
README_LIMIT = 10 * 10**6  # bytes; above it a card is a large object, which the Hub does not render
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy")
VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".gif", ".m4v", ".mpg", ".mpeg")
# What a template leaves behind: outside of code, where braces mean something else, and anywhere.
LEFTOVERS = re.compile(
    r"\{\{|\}\}|\{%|%\}|\[More Information Needed\]|\bTODO\b|\bFIXME\b|\bUndefined\b|(?i:lorem ipsum)"
    r"|(?<=\|)\s*(?:nan|None)\s*(?=\|)"
)
PLACES = re.compile(r"\bPATH_OR_REPO\b|\bNAMESPACE/\w*")
_CODE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_TAG = re.compile(r"v[0-9A-Za-z][\w.+-]*")


def problems(plan: Plan, allowed: Sequence[str] = (), progress: bool = False) -> list[str]:
    """Check a plan.

    Args:
        plan: what would be pushed.
        allowed: strings that the search for secrets and paths may find.
        progress: show a bar while files are searched.

    Returns:
        One line for each thing that is wrong; empty when the push may start.
    """
    found = [*_names(plan)]
    for repo in plan.repos:
        for line in (*_card(repo), *_sizes(repo), *_pickles(repo), *_video_files(repo)):
            found.append(f"{repo.kind} {repo.repo_id}: {line}")
    if (dataset := plan.repo("dataset")) is not None:
        found += [f"dataset {dataset.repo_id}: {line}" for line in (*_embedded_videos(plan), *_dataset(plan))]
    model = plan.repo("model")
    found += [f"model {model.repo_id}: {line}" for line in _measured(plan.run, model)]
    return found + list(_leaks(plan, allowed, progress))


def check_names(namespace: str, names: dict[str, str]) -> None:
    """Whether the repos of a release may be called so.

    Raises:
        KitError: one may not.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    for kind, name in names.items():
        try:
            if "/" in namespace or "/" in name or not namespace:
                raise HFValidationError("it takes one namespace and one name, as in NAMESPACE/NAME")
            validate_repo_id(f"{namespace}/{name}")
        except HFValidationError as error:
            reason = str(error).split(": '")[0].splitlines()[0].rstrip(".")
            raise KitError(f"{kind} {namespace}/{name}: is no id for a repo ({reason}); give another --name") from None


def _names(plan: Plan) -> Iterator[str]:
    try:
        check_names(plan.namespace, {repo.kind: repo.repo_id.removeprefix(f"{plan.namespace}/") for repo in plan.repos})
    except KitError as error:
        yield str(error)
    if not _TAG.fullmatch(plan.version):
        yield f"--version {plan.version.removeprefix('v')}: cannot be a tag; take numbers and points, as in 1.0.0"
    doubles = [name for name, times in Counter((r.repo_type, r.repo_id) for r in plan.repos).items() if times > 1]
    for repo_type, repo_id in doubles:
        yield f"{repo_type} {repo_id}: two repos would be called so; give another --name"


def _card(repo: RepoPlan) -> Iterator[str]:
    """A card is there, says its licence, and nothing in it was left unfilled."""
    file = repo.final.files.get(CARD)
    if file is None:
        yield f"{CARD} is missing; python -m cards release writes it"
        return
    text = file.read().decode("utf-8", "replace")
    data, body = split_card(text)
    if not data:
        yield f"{CARD}: has no YAML block between '---' lines, or one that cannot be read"
        return
    if not data.get("license"):
        yield f"{CARD}: no 'license' in its YAML block"
    for place in _empty(data):
        if place != "license":
            yield f"{CARD}: '{place}' in its YAML block is empty; fill it in or leave the line out"
    if not body.strip():
        yield f"{CARD}: there is no text below its YAML block"
    above = text[: len(text) - len(body)].count("\n") + 1
    for pattern, part in ((LEFTOVERS, _without_code(body)), (PLACES, body)):
        for number, line in enumerate(part.splitlines(), above):
            if left := pattern.search(line):
                yield f"{CARD}:{number}: '{left[0].strip()}' was left from the template"


def _without_code(body: str) -> str:
    """The text with blocks of code blanked, as many lines as before: braces in them are code."""
    return _CODE.sub(lambda block: "\n" * block[0].count("\n"), body)


def _empty(value: object, place: str = "") -> Iterator[str]:
    """Places in a YAML block that hold nothing."""
    if value is None or value == "" or value == [] or value == {}:
        yield place
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _empty(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _empty(item, f"{place}[{number}]")
    elif isinstance(value, float) and math.isnan(value):
        yield place


def _sizes(repo: RepoPlan) -> Iterator[str]:
    for state in repo.states:
        for file in state.files.values():
            if file.size > FILE_LIMIT:
                yield f"{file.path}: {file.size / 1e9:.0f} GB; the Hub takes {FILE_LIMIT / 1e9:.0f} GB a file: shard it"
            if file.path == CARD and file.size > README_LIMIT:
                yield f"{file.path}: {file.size / 1e6:.0f} MB; the Hub shows cards up to {README_LIMIT / 1e6:.0f} MB"
        if len(state.files) > FILES:
            yield f"{len(state.files):,} files; the Hub takes {FILES:,} in a repo: make larger shards"
        for folder, number in Counter(path.rpartition("/")[0] for path in state.files).items():
            if number > ENTRIES:
                yield f"{folder or 'the top'}: {number:,} files; the Hub takes {ENTRIES:,} a folder: make larger shards"


def _pickles(repo: RepoPlan) -> Iterator[str]:
    """A pickle runs code when it is loaded: none is ever released."""
    for path, file in _all_files(repo).items():
        name = path.rsplit("/", 1)[-1].lower()
        if name == "training_args.bin":
            yield f"{path}: is a pickle; remove it (training_args.yaml says the same)"
        elif name.endswith(PICKLES):
            yield f"{path}: may be a pickle by its name; save weights as safetensors and remove it"
        elif _is_pickle(file):
            yield f"{path}: is a pickle by its content; remove it"


def _is_pickle(file: PlannedFile) -> bool:
    if isinstance(file.source, bytes):
        return False
    with file.source.open("rb") as stream:
        start = stream.read(4)
    if len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 5:
        return True
    if start[:1] in (b"c", b"(", b"]", b"}") and _is_old_pickle(file):
        return True
    if start == b"PK\3\4" and zipfile.is_zipfile(file.source):
        with zipfile.ZipFile(file.source) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    return False


def _is_old_pickle(file: PlannedFile) -> bool:
    """Whether a file is a pickle of the first protocol, which is ASCII without a mark, and calls something."""
    if file.size > SMALL:
        return False
    content = file.read()
    if not content.endswith(b"."):
        return False
    try:
        return any(code.name in ("GLOBAL", "REDUCE", "INST", "OBJ") for code, _, _ in pickletools.genops(content))
    except Exception:  # of many kinds, on what is none
        return False


def _video_files(repo: RepoPlan) -> Iterator[str]:
    """No video lies in a repo as a file."""
    for path in _all_files(repo):
        if path.lower().endswith(VIDEOS):
            yield f"{path}: is a video beside the rows, with no licence of its own; remove it"


def _embedded_videos(plan: Plan) -> Iterator[str]:
    """Videos in the rows are of sources that may be passed on."""
    refused: Counter = Counter()
    for path, file in plan.repo("dataset").final.files.items():
        if path.endswith(".parquet") and isinstance(file.source, Path):
            for source, license in _embedded(file.source):
                if (reason := why_not_passed_on(plan.run.provenance, source, license)) is not None:
                    refused[(path, source, license, reason)] += 1
    for (path, source, license, reason), rows in sorted(refused.items(), key=str):
        yield (
            f"{path}: {rows:,} rows embed videos of source '{source}' under licence '{license}', which may not be "
            f"passed on ({reason}); build again with ids_only: true, or without redistribute"
        )


def _embedded(path: Path) -> Iterator[tuple[str | None, str | None]]:
    """Source and licence of every row that holds a video's bytes."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path)
    names = table.schema_arrow.names
    if "video" not in names:
        return
    leaves = [table.schema.column(place).path for place in range(len(table.schema))]
    if "video.bytes" not in leaves:
        return
    place, words = leaves.index("video.bytes"), [name for name in ("source", "license") if name in names]
    for group in range(table.num_row_groups):
        about = table.metadata.row_group(group)
        known = about.column(place).statistics
        if known is not None and known.has_null_count and known.null_count == about.num_rows:
            continue
        rows = table.read_row_group(group, columns=words).to_pylist() if words else [{}] * about.num_rows
        there = table.read_row_group(group, columns=["video.bytes"]).column("video").combine_chunks()
        held = pc.is_valid(pc.struct_field(there, "bytes")).to_pylist()
        for row, holds in zip(rows, held, strict=True):
            if holds:
                yield row.get("source"), row.get("license")


def _dataset(plan: Plan) -> Iterator[str]:
    """The files are those the build wrote, and the card counts their rows right (a wrong count fails to load)."""
    repo = plan.repo("dataset")
    files = repo.final.files
    for path, known in (plan.run.provenance.get("files") or {}).items():
        if path not in files:
            yield f"{path}: is missing (provenance.json lists it); build the dataset again"
        elif files[path].sha256 != known["sha256"]:
            yield f"{path}: is not what the build wrote (provenance.json has its hash); build the dataset again"
    card = files.get(CARD)
    if card is None:
        return
    try:
        data, _ = split_card(card.read().decode("utf-8", "replace"))
        said = {
            (info["config_name"], split["name"]): split["num_examples"]
            for info in data.get("dataset_info") or []
            for split in info.get("splits") or []
        }
    except (KeyError, TypeError, AttributeError):
        yield f"{CARD}: its dataset_info is not as the build writes it"
        return
    there = {(config, name): n for config, splits in plan.run.split_rows.items() for name, n in splits.items()}
    for config, name in sorted(said.keys() | there.keys()):
        if said.get((config, name)) != there.get((config, name)):
            yield (
                f"{CARD}: says {said.get((config, name))} rows of {config}/{name}, the files hold "
                f"{there.get((config, name))}; build the dataset again"
            )


def _measured(run: Run, repo: RepoPlan) -> Iterator[str]:
    """The accuracy in the card's ``model-index`` is the one that was measured."""
    card = repo.final.files.get(CARD)
    data = split_card(card.read().decode("utf-8", "replace"))[0] if card is not None else {}
    accuracy = run.arms.get(run.release_arm, {}).get("accuracy")
    for model in data.get("model-index") or []:
        for result in model.get("results") or []:
            for metric in result.get("metrics") or []:
                if metric.get("type") == "accuracy" and (accuracy is None or metric.get("value") != round(accuracy, 4)):
                    said = "not measured" if accuracy is None else f"{accuracy:.4f}"
                    yield (
                        f"{CARD}: its model-index says accuracy {metric.get('value')}, arms.json says {said}; write "
                        "the card again with python -m cards release"
                    )


def _leaks(plan: Plan, allowed: Sequence[str], progress: bool) -> Iterator[str]:
    from tqdm.auto import tqdm

    leaks = Leaks((plan.run.folder, plan.run.dataset), allowed, plan.namespace)
    for finding in leaks.in_words("words for commits and tags", _words(plan)):
        yield f"{finding.where}: {finding.what}"
    files = [(repo, file) for repo in plan.repos for file in _all_files(repo).values()]
    total = sum(file.size for _, file in files)
    with tqdm(
        total=total, unit="B", unit_scale=True, desc="searching for secrets and paths", disable=not progress
    ) as bar:
        for repo, file in files:
            found = list(leaks.in_file(file))
            for finding in found[:SHOWN]:
                yield f"{repo.kind} {repo.repo_id}: {finding.where}: {finding.what}"
            if len(found) > SHOWN:
                yield f"{repo.kind} {repo.repo_id}: {file.path}: and {len(found) - SHOWN} more"
            bar.update(file.size)


def _words(plan: Plan) -> str:
    """What a push says besides files: names, titles, and the section of the changelog that goes into the notes."""
    from cards.push.notes import changelog

    titles = [f"{state.title} {' '.join(state.tags)}" for repo in plan.repos for state in repo.states]
    return "\n".join([plan.name, plan.collection, *titles, changelog(plan.run)])


def _all_files(repo: RepoPlan) -> dict[str, PlannedFile]:
    """Every content of every state once, the newest by its path, others as ``STATE/PATH``."""
    found: dict[str, PlannedFile] = {}
    seen: set[tuple[str, str]] = set()
    for state in reversed(repo.states):
        for path, file in state.files.items():
            if (path, file.sha256) not in seen:
                seen.add((path, file.sha256))
                found[path if path not in found else f"{state.name}/{path}"] = file
    return found
