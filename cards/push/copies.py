"""Copies for the Hub of files that are written without a namespace: cards, and JSON that names this machine's folders.

The files in the run folder stay as they are; the same run and namespace give the same bytes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from cards.run_folder import Run

_MODEL = re.compile(r'^ {1,2}"model": ("(?:[^"\\]|\\.)*")', re.MULTILINE)  # of results: who answered
FRONT = re.compile(r"\A---\n(.*?\n)---\n", re.DOTALL)


def split_card(text: str) -> tuple[dict, str]:
    """The YAML block of a card and the text below it; an empty block where there is none that can be read."""
    found = FRONT.match(text)
    if found is None:
        return {}, text
    try:
        data = yaml.safe_load(found.group(1))
    except yaml.YAMLError:
        return {}, text
    return (data if isinstance(data, dict) else {}), text[found.end() :]


def dataset_card(path: Path, repo_id: str) -> bytes:
    """The dataset card, whose code loads the repo itself. Its YAML block stays byte for byte."""
    text, local = path.read_text(encoding="utf-8"), path.parent.name
    text = text.replace(f'load_dataset("{local}"', f'load_dataset("{repo_id}"')
    text = re.sub(r"  # beside the local folder; \S+ from the Hub$", "", text, flags=re.MULTILINE)
    return text.replace(f"NAMESPACE/{local}", repo_id).encode()


def model_card(
    path: Path,
    ids: dict[str, str],
    dataset: str,
    base: str | None,
    adapter_only: bool,
    own_base: Path | None,
    version: str | None = None,
) -> bytes:
    """The model card with ids of the Hub.

    Args:
        path: the card.
        ids: repo ids by kind.
        dataset: what the card calls the dataset.
        base: Hub id of the base.
        adapter_only: whether the repo holds nothing but the adapter.
        own_base: the base, where the model repo itself holds it under the tag ``base``.
        version: tag of the dataset; None where it is not released along.
    """
    data, body = split_card(path.read_text(encoding="utf-8"))
    repo_id = ids["model"]
    if "datasets" in data:
        data["datasets"] = [ids["dataset"] if name == dataset else name for name in data["datasets"]]
    for model in data.get("model-index") or []:
        for result in model.get("results") or []:
            if result.get("dataset", {}).get("type") == dataset:
                result["dataset"]["type"] = ids["dataset"]
    if base is not None:
        data = {"base_model": base, "base_model_relation": "adapter" if adapter_only else "finetune", **data}
    body = body.replace("PATH_OR_REPO", repo_id)
    place = f"[`{ids['dataset']}`](https://huggingface.co/datasets/{ids['dataset']})"
    tagged = f"{place} at the tag `{version}`" if version else place
    body = body.replace(f"Preference pairs of `{dataset}`", f"Preference pairs of {tagged}")
    for word in ("--dataset ", "--dataset_name ", "MMAIP_V_DATA="):  # of commands
        body = re.sub(rf"{word}{re.escape(dataset)}(?=\s)", word + ids["dataset"], body)
    if own_base is not None:
        body = body.replace('from_pretrained("BASE")', f'from_pretrained("{repo_id}", revision="base")')
    elif base is not None:
        body = body.replace('from_pretrained("BASE")', f'from_pretrained("{base}")')
    if adapter_only:
        body = body.replace(', subfolder="adapter"', "")
        body = body.replace("Each round is a complete checkpoint.", "This repo holds the adapter of each round alone.")
        body = body.replace(
            "These rounds also hold the LoRA adapter that they trained (`adapter/`)", "Each is the LoRA"
        )
    front = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n{body}".encode()


def evaluator_card(path: Path, repo_id: str) -> bytes:
    """The evaluator's card with its own id where it was written before it had one."""
    text = path.read_text(encoding="utf-8").replace("NAMESPACE/NAME", repo_id)
    # what stood for the folder that the repo is downloaded to
    return re.sub(r"(?<![\w/])NAME(?=/|\"|$)", repo_id.rsplit("/", 1)[-1], text, flags=re.MULTILINE).encode()


def adapter_config(path: Path, base: str, revision: str | None) -> bytes:
    """An adapter's configuration that names its base as it is called on the Hub."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": base, "revision": revision}
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def without_paths(path: Path, run: Run, base: str | None = None) -> bytes:
    """A JSON file of the run, naming its folders from the run folder on and the dataset by its name alone.

    Args:
        path: the file.
        run: the run.
        base: what a base is called on the Hub that lies in a folder elsewhere; its folder's name by default.
    """
    text = path.read_text(encoding="utf-8")
    for folder, instead in ((run.folder, ""), (run.dataset, run.dataset.name)):
        for name in {str(folder), str(folder.absolute()), str(folder.resolve())}:
            inside, whole = json.dumps(name)[1:-1], json.dumps(name)
            text = text.replace(f'"{inside}/', f'"{instead}/' if instead else '"')
            text = text.replace(whole, json.dumps(instead or folder.name))
    for found in dict.fromkeys(_MODEL.findall(text)):
        name = json.loads(found)
        if name.startswith(("/", "~", ".")) or (Path(name).is_dir() and not (run.folder / name).is_dir()):
            text = text.replace(f'"model": {found}', f'"model": {json.dumps(base or Path(name).name)}')
    return text.encode()
