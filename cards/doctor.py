"""``python -m cards doctor``: is everything here that the kit needs, and what to do where it is not."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from dataset_builder.errors import EXIT_CANNOT_RUN, EXIT_OK, KitError

OK, NOTE, PROBLEM = "ok", "note", "problem"
LITTLE, FULL = 20, 2  # GB free: a released model and its cache want the first, nothing works below the second
EXTRAS = {
    "label": ("gradio", "the labelling page (python -m eval label)"),
    "cluster": ("datatrove", "builds on Slurm, Ray or several local tasks"),
    "meaning": ("sentence_transformers", "duplicates by meaning"),
    "codecs": ("torchcodec", "decoded access to video rows in datasets; the kit itself decodes with PyAV"),
}


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        state: `OK`, `NOTE` or `PROBLEM`.
        name: what was looked at.
        said: what was found.
        do: what to do; empty where there is nothing.
    """

    state: str
    name: str
    said: str
    do: str = ""


def add_doctor(verbs: argparse._SubParsersAction) -> None:
    """Add the verb to the room's command line."""
    doctor = verbs.add_parser("doctor", help="check versions, codecs, GPU, disk and token, and say what to do")
    doctor.add_argument("--json", metavar="FILE", help="also write the findings there")


def doctor(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Look at everything and say it line by line.

    Returns:
        0 unless something is a problem; then 2.
    """
    found = []
    for finding in findings():
        found.append(finding)
        say(f"{finding.state:<8} {finding.name:<18} {finding.said}" + (f": {finding.do}" if finding.do else ""))
    problems = sum(finding.state == PROBLEM for finding in found)
    say(f"{problems} problem{'' if problems == 1 else 's'}" if problems else "nothing is in the way")
    if arguments.json:
        text = json.dumps([asdict(one) for one in found], indent=1) + "\n"
        try:
            Path(arguments.json).write_text(text, encoding="utf-8")
        except OSError as error:
            raise KitError(f"{arguments.json}: cannot be written: {error.strerror}") from None
    return EXIT_CANNOT_RUN if problems else EXIT_OK


def findings() -> Iterator[Finding]:
    """All findings, the quick ones first."""
    yield python()
    yield from packages(requirements())
    yield from extras()
    yield threads()
    yield memory()
    yield from disks()
    yield token()
    yield launcher()
    yield codecs()
    yield from gpu()
    yield from torchcodec()


def requirements() -> list[str]:
    """What the kit's ``setup.cfg`` asks for; of an installed copy, what its metadata says."""
    file = Path(__file__).parents[1] / "setup.cfg"
    if file.is_file():
        config = ConfigParser()
        config.read(file, encoding="utf-8")
        lines = config["options"]["install_requires"].splitlines()
        return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    return [line for line in metadata.requires("mmaip-v") or [] if "extra ==" not in line]


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Python's version."""
    text = ".".join(map(str, version))
    if version < (3, 11):
        return Finding(PROBLEM, "python", text, "the kit needs 3.11 or newer: make its environment with one")
    return Finding(OK, "python", text)


def packages(wanted: list[str]) -> Iterator[Finding]:
    """The installed version of each requirement against what is asked for."""
    from packaging.requirements import Requirement

    good = 0
    for requirement in map(Requirement, wanted):
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = None
        install = f"pip install '{requirement}'"
        if version is None:
            yield Finding(PROBLEM, requirement.name, "is not installed", install)
        elif not requirement.specifier.contains(version, prereleases=True):
            yield Finding(
                PROBLEM, requirement.name, f"{version} is installed, {requirement.specifier} is needed", install
            )
        else:
            good += 1
    yield Finding(OK, "packages", f"{good} of {len(wanted)} as setup.cfg asks")


def extras() -> Iterator[Finding]:
    """What is optional, and what it is for."""
    for extra, (module, use) in EXTRAS.items():
        if find_spec(module) is not None:
            yield Finding(OK, f"extra {extra}", f"{module} is there ({use})")
        else:
            yield Finding(NOTE, f"extra {extra}", f"not installed, for {use}", f"pip install -e '.[{extra}]' if wanted")


def threads() -> Finding:
    """CPUs and threads a process."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS")
    said = f"{cpus} CPUs" + (f", OMP_NUM_THREADS={limit}" if limit else "")
    if limit and limit.isdecimal() and int(limit) > cpus:
        return Finding(NOTE, "threads", said, "more threads than CPUs slow everything down: unset OMP_NUM_THREADS")
    return Finding(OK, "threads", said)


def memory() -> Finding:
    """The machine's memory; what a run takes depends on its model."""
    use = "python -m recipes.memory CONFIG.yaml estimates what a training run takes"
    try:
        kept = dict(
            re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        )
        free, total = (int(kept[name]) * 1024 / 1e9 for name in ("MemAvailable", "MemTotal"))
    except (OSError, KeyError):  # not Linux
        return Finding(OK, "memory", use)
    return Finding(OK, "memory", f"{free:.0f} of {total:.0f} GB available; {use}")


def disks() -> Iterator[Finding]:
    """Free disk where the Hub's cache lies and here."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for name, place in (("disk, HF cache", Path(HF_HUB_CACHE)), ("disk, here", Path.cwd())):
        there = next((p for p in (place, *place.parents) if p.exists()), Path("/"))
        free = shutil.disk_usage(there).free / 1e9
        move = (
            "free some, or set HF_HOME to a larger disk" if "cache" in name else "free some, or work on a larger disk"
        )
        state = PROBLEM if free < FULL else NOTE if free < LITTLE else OK
        said = f"{free:.1f} GB free at {place}"
        yield Finding(state, name, said, "" if state == OK else f"a 7B model needs about {LITTLE} GB: {move}")
        if not os.access(there, os.W_OK):
            yield Finding(PROBLEM, name, f"{place} cannot be written", move.split(", or ")[-1])


def token() -> Finding:
    """Whether there is a token of the Hub, and what it may do. The token itself is never shown."""
    from huggingface_hub import get_token
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if not get_token():
        said = "there is none; only push needs one"
        return Finding(NOTE, "token", said, "hf auth login, with a token that may write")
    if HF_HUB_OFFLINE:
        said = "there is one; HF_HUB_OFFLINE is set, so nobody was asked what it may do"
        return Finding(NOTE, "token", said, "unset HF_HUB_OFFLINE to ask, and to push")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        me = HfApi().whoami()
    except HfHubHTTPError as error:
        code = getattr(error.response, "status_code", None)
        if code in (401, 403):
            return Finding(PROBLEM, "token", f"the Hub refuses it ({code})", "hf auth login with a new one")
        return Finding(NOTE, "token", f"there is one; the Hub answers {code}", "ask again later")
    except Exception as error:  # no network, in one of many shapes
        if "invalid" in str(error).lower():
            return Finding(PROBLEM, "token", "the Hub refuses it", "hf auth login with a new one")
        said = f"there is one; the Hub cannot be reached ({type(error).__name__})"
        return Finding(NOTE, "token", said, "push needs the network; see HF_ENDPOINT and the proxy's variables")
    access = (me.get("auth") or {}).get("accessToken") or {}
    role, spaces = access.get("role"), [me.get("name"), *(org.get("name") for org in me.get("orgs") or [])]
    said = f"of {me.get('name')}, role {role or 'unknown'}; namespaces: {', '.join(filter(None, spaces))}"
    if role == "read":
        return Finding(NOTE, "token", said, "it may not push; hf auth login with one that may write")
    if role == "fineGrained":
        return fine_grained(me.get("name"), access.get("fineGrained") or {})
    return Finding(OK, "token", said)


def fine_grained(user: str, scopes: dict) -> Finding:
    """What a fine-grained token may write, by its scopes as ``whoami`` lists them.

    Args:
        user: whose token it is.
        scopes: ``{"scoped": [{"entity": {"type", "name"}, "permissions": [...]}]}``.
    """
    entities = {}
    for scope in scopes.get("scoped") or []:
        if "repo.write" in (scope.get("permissions") or []):
            entity = scope.get("entity") or {}
            entities[entity.get("name") or "?"] = entity.get("type")
    namespaces = sorted(name for name, kind in entities.items() if kind in ("user", "org"))
    said = f"of {user}, fine-grained; may write repos of: {', '.join(namespaces) or 'no namespace'}"
    if not namespaces:
        return Finding(NOTE, "token", said, "it may not push: give it write access to the namespace's repos")
    return Finding(NOTE, "token", said, "push also needs write access to the namespace's collections")


def launcher() -> Finding:
    """LightEval's own command reaches for the network when it starts."""
    said = (
        "lighteval's own command fetches from the network when it starts; python -m eval takes the same words without"
    )
    return Finding(OK if find_spec("lighteval") else NOTE, "evaluation", said)


def codecs() -> Finding:
    """Encode and decode a tiny clip, as the kit does everywhere."""
    try:
        import io

        import av
        import numpy as np

        stream = io.BytesIO()
        with av.open(stream, "w", format="mp4") as out:
            video = out.add_stream("mpeg4", rate=4)
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
            for level in (0, 80, 160, 240):
                picture = np.full((32, 32, 3), level, dtype=np.uint8)
                out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            out.mux(video.encode())
        stream.seek(0)
        with av.open(stream) as clip:
            frames = sum(1 for _ in clip.decode(video=0))
        wanted = ("h264", "hevc", "vp9", "av1", "mjpeg")
        lacking = [name for name in wanted if name not in av.codecs_available]
    except Exception as error:  # a broken build fails in its own way: what matters is that it does
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Finding(
            PROBLEM, "video codecs", f"PyAV cannot write and read a clip ({first})", "pip install --force-reinstall av"
        )
    if frames != 4:
        return Finding(
            PROBLEM, "video codecs", f"a clip of 4 frames came back with {frames}", "pip install --force-reinstall av"
        )
    if lacking:
        return Finding(
            NOTE, "video codecs", f"PyAV {av.__version__} has no {', '.join(lacking)}", "such videos cannot be read"
        )
    return Finding(OK, "video codecs", f"PyAV {av.__version__} writes and reads; {', '.join(wanted)}")


def torchcodec() -> Iterator[Finding]:
    """Whether torchcodec, where it is installed, finds the FFmpeg libraries that it wants."""
    if find_spec("torchcodec") is None:
        return  # named among the extras
    try:
        from torchcodec.decoders import VideoDecoder  # noqa: F401
    except Exception as error:  # it tries one FFmpeg after the other and raises a page of text
        said = f"is installed but cannot be loaded ({type(error).__name__}), so datasets cannot decode its video rows"
        do = "install FFmpeg's shared libraries, or read with cast_column('video', Video(decode=False)) as the kit does"
        yield Finding(NOTE, "torchcodec", said, do)
    else:
        yield Finding(OK, "torchcodec", "loads: datasets can decode video rows")


def gpu() -> Iterator[Finding]:
    """GPUs and their memory; torch and torchvision must be of one build."""
    if find_spec("torch") is None:
        return  # named among the packages
    try:
        import torch
    except Exception as error:  # a broken build raises what it likes
        yield Finding(
            PROBLEM, "torch", f"cannot be imported ({type(error).__name__})", "install torch and torchvision again"
        )
        return
    builds = {}
    for name in ("torch", "torchvision"):
        try:
            found = re.search(r"\+(\w+)", metadata.version(name))
        except metadata.PackageNotFoundError:
            continue
        builds[name] = found[1] if found else "default"
    if len(set(builds.values())) > 1:
        both = ", ".join(f"{name} {build}" for name, build in builds.items())
        yield Finding(PROBLEM, "torch", f"of two builds ({both})", "install torch and torchvision from the same index")
    if not torch.cuda.is_available():
        build = builds.get("torch", "default")
        if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
            do = "compare the driver's CUDA version (nvidia-smi) with torch's build, and look at CUDA_VISIBLE_DEVICES"
            yield Finding(NOTE, "GPU", f"this machine has a driver, but torch (build {build}) sees no GPU", do)
        else:
            do = "nothing for demo and tests; add --use_cpu true --bf16 false to a recipe"
            yield Finding(NOTE, "GPU", "none: the demo and tests run on CPU; real models want one", do)
        return
    for place in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(place)
        free, total = (size / 1e9 for size in torch.cuda.mem_get_info(place))
        state = NOTE if free < total / 2 else OK
        do = "" if state == OK else "another process holds the rest"
        yield Finding(state, f"GPU {place}", f"{card.name}, {free:.0f} of {total:.0f} GB free", do)
