"""``config.json`` of an evaluator: what the judge is, in a form that holds on every machine.

    {"format": "mmaip-v-evaluator/1",
     "judge": {"kind": "visual", "model": "./judge/NAME", …},
     "record": {"name", "kind", "model", "revision", "settings_hash", "settings", "fingerprint"},
     "license": "apache-2.0"}

``judge`` is a specification for :func:`dataset_builder.judges.make_judge` with every field spelled out, so that
changed defaults change no evaluator; a ``model`` that begins with ``./`` lies in the repo itself. ``record`` says what
the judge was when the evaluator was saved: its prompts in full, frames and decoding are in ``settings``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from ipaddress import ip_address
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from dataset_builder.errors import KitError
from dataset_builder.models import served_name
from dataset_builder.settings import parse_judge
from eval.results import read_json, write_text

CONFIG = "config.json"
FORMAT, VERSION = "mmaip-v-evaluator", 1
WITHIN = "./"  # how a model begins that lies in the repo
_SECRET = re.compile(r"(^|[_-])(api[_-]?key|secret|password|authorization|credentials?|bearer)($|[_-])|(^|[_-])token$")
_PATH = re.compile(r"[/~\\]|[A-Za-z]:[/\\]|file:")
_LOCAL = (".local", ".localhost", ".internal", ".intranet", ".lan", ".home", ".corp")


def read_config(folder: str | Path) -> dict[str, Any]:
    """The checked content of an evaluator's ``config.json``.

    Raises:
        KitError: in one line, if there is none, it is broken, made by a newer kit, or of something else.
    """
    path = Path(folder) / CONFIG
    content = read_json(path)
    name, _, number = str(content.get("format") if isinstance(content, dict) else "").partition("/")
    if name != FORMAT or not number.isdecimal():
        raise KitError(f"{path}: this is no evaluator (expected format '{FORMAT}/{VERSION}')")
    if int(number) > VERSION:
        raise KitError(
            f"{path}: its format {content['format']} is newer than this kit, which reads up to {FORMAT}/{VERSION}: "
            "update the kit, or use the package that lies in the repo"
        )
    for key, kind in (("judge", dict), ("record", dict), ("license", str)):
        if not isinstance(content.get(key), kind):
            raise KitError(f"{path}: field '{key}' is missing or of the wrong kind")
    parse_judge(dict(content["judge"]), f"{path}: judge")
    return content


def write_config(folder: Path, spec: Mapping[str, Any], record: Mapping[str, Any], license: str) -> None:
    """Write ``config.json``; the same evaluator gives the same bytes."""
    content = {"format": f"{FORMAT}/{VERSION}", "judge": dict(spec), "record": dict(record), "license": license}
    write_text(folder / CONFIG, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def resolved(spec: Mapping[str, Any], folder: str | Path) -> dict[str, Any]:
    """The specification with a model that lies in the repo at its place on this machine.

    Raises:
        KitError: the model is not in the repo.
    """
    model = spec.get("model")
    if spec.get("endpoint") or not isinstance(model, str):
        return dict(spec)
    if not model.startswith(WITHIN):
        if _PATH.match(model):
            raise KitError(f"{Path(folder) / CONFIG}: judge.model is a path of another machine: {model}")
        return dict(spec)
    inner = PurePosixPath(model)
    place = Path(folder).absolute() / inner
    if ".." in inner.parts or not place.is_dir():
        raise KitError(f"{Path(folder) / CONFIG}: judge.model: {model} is not in the repo; download it again")
    return {**spec, "model": str(place)}


def local_weights(spec: Mapping[str, Any]) -> Path | None:
    """The folder on this machine that holds a judge's model; None for a Hub id, an endpoint or a judge without one."""
    model = spec.get("model")
    return Path(model) if isinstance(model, str) and not spec.get("endpoint") and Path(model).is_dir() else None


def portable(spec: Mapping[str, Any], revision: str, weights: str | None) -> dict[str, Any]:
    """A judge's specification without anything of this machine, every field spelled out.

    Args:
        spec: as for ``make_judge``.
        revision: of the judge, which a Hub id is pinned to.
        weights: where its model lies in the repo, for one that is carried.

    Raises:
        KitError: it holds what looks like a key or a path of this machine.
    """
    found = asdict(parse_judge(dict(spec)))
    endpoint = found.get("endpoint")
    if endpoint:
        found["model"] = served_name(found["model"])
        endpoint["base_url"] = _public_address(endpoint["base_url"])
    elif weights is not None:
        found |= {"model": WITHIN + weights, "revision": None}
    elif "model" in found and re.fullmatch(r"[0-9a-f]{40}", revision):
        found["revision"] = revision
    _refuse_private({key: value for key, value in found.items() if weights is None or key != "model"}, "judge")
    return found


def _public_address(url: str | None) -> str | None:
    """The address of a server, under the name ``localhost`` if it is one that only its owner can reach.

    Raises:
        KitError: it has a query, where keys are put.
    """
    if url is None:
        return None
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        raise KitError(
            f"judge.endpoint.base_url: {parts.hostname}: an address with a query is not saved (keys stand there)"
        )
    host = parts.hostname or ""
    try:
        local = not ip_address(host).is_global
    except ValueError:
        local = "." not in host or host.endswith(_LOCAL)
    place = "localhost" if local else f"[{host}]" if ":" in host else host
    return urlunsplit((parts.scheme, f"{place}:{parts.port}" if parts.port else place, parts.path, "", ""))


def _refuse_private(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if inner is not None and key != "api_key_env" and _SECRET.search(str(key).lower()):
                raise KitError(f"{where}.{key}: looks like a key and is not saved; name a variable in api_key_env")
            _refuse_private(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            _refuse_private(inner, where)
    elif isinstance(value, str) and _PATH.match(value):
        raise KitError(f"{where}: {value!r} is a path of this machine, which means nothing on another")
