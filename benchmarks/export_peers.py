"""Exported rows train one DPO step in ms-swift and in LLaMA-Factory: rows and video tokens counted, nothing timed.

    python -m benchmarks.export_peers [DATASET] [--output DIR]

The pairs of a dataset (default ``mmaip-v``) are exported in both peers' shapes. Each peer, in an environment of its
own, reads them by its own loader and template with a tiny Qwen2.5-VL of Qwen's real token ids; what every row became is
compared with what was exported: no row lost, changed or replaced, question and answers as they were, in chosen and
rejected the video tokens and patches that the clip comes to with the kit's frames in the same processor. Then the
peer's own command line makes one step. Any difference is named, and the exit code is 1.

Both peers are told by their documented options to take 8 evenly spaced frames, as the kit's training does, and at most
200,704 pixels of each (`benchmarks.peer_check_compare`). What then still differs, and is expected here: ms-swift leaves
out the last of an odd number of frames, which happens in clips that have fewer than 8 (and cannot read a clip of one),
where LLaMA-Factory and the processor repeat it; a frame above the limit is scaled by another rule in LLaMA-Factory; and
of two neighbouring frames LLaMA-Factory takes the earlier where the others take the nearest.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import write_results
from benchmarks.dpo_peers import ENVIRONMENT, PEERS
from benchmarks.peer_check_compare import (
    FPS,
    FRAMES,
    MAX_PIXELS,
    MIN_PIXELS,
    Clip,
    ClipCounter,
    check_rows,
    compare,
    read_rows,
)
from benchmarks.peers_env import environment


@dataclass(frozen=True)
class Peer:
    """A trainer and its shape.

    Attributes:
        title: name and version.
        shape: of ``dataset_builder export``.
        name, packages: of its environment.
        check: script that reads the rows in that environment.
        command: in the environment's ``bin``.
        variables: environment variables that set frames and pixels.
        words: (checkpoint, export, output, batch) → what follows the command; also writes what these name.
    """

    title: str
    shape: str
    name: str
    packages: tuple[str, ...]
    check: str
    command: str
    variables: dict[str, str]
    words: Callable[[Path, Path, Path, int], list[str]]


def swift_words(checkpoint: Path, export: Path, output: Path, batch: int) -> list[str]:
    """One step of ``swift rlhf``; a card's command has the first lines, the rest is for a step on a CPU."""
    options = {
        "rlhf_type": "dpo",
        "model": checkpoint,
        "use_hf": "true",
        "model_type": "qwen2_5_vl",
        "template": "qwen2_5_vl",
        "dataset": export / "train.jsonl",
        "split_dataset_ratio": 0,
        "max_length": 8192,
        "tuner_type": "lora",
        "beta": 0.1,
        "learning_rate": 5e-6,
        "output_dir": output,
        "add_version": "false",
        "use_cpu": "true",
        "torch_dtype": "float32",
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": 1,
        "max_steps": 1,
        "save_steps": 1,
        "logging_steps": 1,
        "report_to": "none",
        "dataset_shuffle": "false",
        "train_dataloader_shuffle": "false",
        "check_model": "false",  # asks its hub for a newer version of the model
    }
    return [str(word) for name, value in options.items() for word in (f"--{name}", value)]


def factory_words(checkpoint: Path, export: Path, output: Path, batch: int) -> list[str]:
    """One step of ``llamafactory-cli train``; a card's YAML has the first lines, the rest is for a step on a CPU."""
    options = {
        "model_name_or_path": str(checkpoint),
        "template": "qwen2_vl",
        "stage": "dpo",
        "do_train": True,
        "finetuning_type": "lora",
        "dataset_dir": str(export),
        "dataset": next(iter(json.loads((export / "dataset_info.json").read_text()))),
        "video_maxlen": FRAMES,
        "video_fps": float(FPS),
        "video_max_pixels": MAX_PIXELS,
        "cutoff_len": 8192,
        "pref_beta": 0.1,
        "learning_rate": 5.0e-6,
        "output_dir": str(output),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": 1,
        "max_steps": 1,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_shuffling": True,
    }
    path = output.with_suffix(".yaml")
    path.write_text(json.dumps(options, indent=1))  # JSON is YAML
    return [str(path)]


SWIFT = Peer(
    "ms-swift 4.6.0",
    "ms_swift",
    PEERS[0].name,
    PEERS[0].packages,
    "peer_check_swift.py",
    "swift rlhf",
    {
        "FPS_MIN_FRAMES": str(FRAMES),
        "FPS_MAX_FRAMES": str(FRAMES),
        "VIDEO_MIN_PIXELS": str(MIN_PIXELS),
        "VIDEO_MAX_PIXELS": str(MAX_PIXELS),
        "FORCE_QWENVL_VIDEO_READER": "decord",
    },
    swift_words,
)
FACTORY = Peer(
    "LLaMA-Factory 0.9.5",
    "llama_factory",
    PEERS[1].name,
    PEERS[1].packages,
    "peer_check_llama_factory.py",
    "llamafactory-cli train",
    {},
    factory_words,
)
TRAINERS = (SWIFT, FACTORY)


def make_checkpoint(folder: Path) -> Path:
    """A tiny Qwen2.5-VL with Qwen's real vocabulary, token ids and bounds on pixels."""
    from benchmarks.dpo_cases import QWEN_VOCABULARY, Length, save_checkpoint

    if not (folder / "config.json").exists():
        length = Length("released", frames=FRAMES, height=3584, width=3584, question=0)
        save_checkpoint(folder, QWEN_VOCABULARY, length, tiny=True)
        path = folder / "processor_config.json"
        config = json.loads(path.read_text())
        for part in ("image_processor", "video_processor"):
            config[part]["size"]["shortest_edge"] = MIN_PIXELS
        path.write_text(json.dumps(config, indent=2))
    return folder


def _run(words: list, variables: dict[str, str], work: Path) -> subprocess.CompletedProcess[str]:
    """A peer's process: one thread, no hub, caches in the work folder, nothing of this environment's packages."""
    caches = {name: str(work / "cache") for name in ("HF_HOME", "MODELSCOPE_CACHE")}
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    full = {**kept, **ENVIRONMENT, "OMP_NUM_THREADS": "1", **caches, **variables}
    words = [str(word) for word in words]
    return subprocess.run(words, capture_output=True, text=True, env=full, cwd=work, timeout=1800)


def _last_error(done: subprocess.CompletedProcess[str]) -> str:
    """The line that says why a process failed."""
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if line.partition(":")[0].endswith(("Error", "Exception"))]
    return (errors or lines or [f"ended with {done.returncode} and said nothing"])[-1][:300]


@dataclass(frozen=True)
class Bench:
    """Where everything is.

    Attributes:
        work: folder for exports, logs and outputs.
        checkpoint: tiny model.
        environments: folder of the peers' environments; None for the usual one.
        variables: for the peers' processes.
    """

    work: Path
    checkpoint: Path
    environments: Path | None = None
    variables: tuple[tuple[str, str], ...] = ()

    def python(self, peer: Peer) -> Path:
        """The Python of a peer's environment, which is made when it is not there."""
        home = () if self.environments is None else (self.environments,)
        return environment(peer.name, list(peer.packages), *home)

    def read(self, peer: Peer, export: Path) -> dict:
        """What the peer's loader and template make of an export.

        Returns:
            As :func:`compare` takes it, or ``{"stopped": why}`` when the peer refuses the whole data set.
        """
        out, output = self.work / f"{peer.shape}.json", self.work / f"{peer.shape}-read"
        out.unlink(missing_ok=True)
        script = Path(__file__).with_name(peer.check)
        words = [self.python(peer), script, out, *peer.words(self.checkpoint, export, output, 1)]
        done = _run(words, {**peer.variables, **dict(self.variables)}, self.work)
        (self.work / f"{peer.shape}-read.log").write_text(done.stdout + done.stderr)
        return {"stopped": _last_error(done)} if done.returncode or not out.exists() else json.loads(out.read_text())

    def step(self, peer: Peer, export: Path, batch: int) -> dict:
        """One optimizer step by the peer's own command line.

        Returns:
            ``steps`` made, ``loss``, and ``moved``, whether the adapter that it saved has moved from its start.

        Raises:
            RuntimeError: it failed, with its reason.
        """
        output = self.work / f"{peer.shape}-step"
        shutil.rmtree(output, ignore_errors=True)  # of an earlier run: LLaMA-Factory refuses to write there
        program, *rest = peer.command.split()
        words = [self.python(peer).with_name(program), *rest, *peer.words(self.checkpoint, export, output, batch)]
        done = _run(words, {**peer.variables, **dict(self.variables)}, self.work)
        (self.work / f"{peer.shape}-step.log").write_text(done.stdout + done.stderr)
        states = sorted(output.rglob("trainer_state.json"))
        if done.returncode or not states:
            raise RuntimeError(_last_error(done))
        state = json.loads(states[-1].read_text())
        losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
        return {
            "steps": state["global_step"],
            "loss": float(losses[-1]) if losses else math.nan,
            "moved": adapter_moved(states[-1].parent / "adapter_model.safetensors"),
        }


def adapter_moved(path: Path) -> bool:
    """Whether a LoRA adapter differs from its start, at which every ``lora_B`` is zero."""
    from safetensors.torch import load_file

    return any(bool(tensor.any()) for name, tensor in load_file(path).items() if "lora_B" in name)


def check_peer(bench: Bench, peer: Peer, export: Path, train: bool = True) -> tuple[list[str], list[dict]]:
    """Everything that this file checks, for one peer.

    Args:
        bench: where everything is.
        peer: whom to ask.
        export: folder in the peer's shape.
        train: also make a step.

    Returns:
        The differences, a line each, and rows for the results file.
    """
    from dataset_builder.media import MediaError

    rows, counter, clips = read_rows(export, peer.shape), ClipCounter(bench.checkpoint), {}
    problems = check_rows(rows)
    for row in rows:
        if row.video in clips:
            continue
        try:
            clips[row.video] = counter.count(row.file, peer.shape), counter.count(row.file, None)
        except MediaError as error:
            problems.append(str(error))
            clips[row.video] = (Clip(0, [], [], 0),) * 2
    wanted, own = zip(*(clips[row.video] for row in rows), strict=True)
    seen = bench.read(peer, export)
    if "stopped" in seen:
        problems.append(f"stops before training: {seen['stopped']}")
        seen = {"read": 0, "rows": []}
    else:
        problems += compare(rows, seen, wanted)
    alike = sum((one.tokens, one.grid) == (other.tokens, other.grid) for one, other in zip(wanted, own, strict=True))
    whole = [one for one in seen["rows"] if not one["error"]]
    results = [
        _result(peer, "rows read", len(rows), seen["read"], "rows"),
        _result(peer, "rows kept", len(rows), len(whole), "rows"),
        *(
            _result(
                peer,
                f"video tokens, {side}",
                sum(clip.tokens for clip in wanted),
                sum(one[side]["tokens"] for one in whole),
                "tokens",
            )
            for side in ("chosen", "rejected")
        ),
        _result(peer, "rows as our training has them", len(rows), alike, "rows"),
    ]
    counts = (f"{row['case'].removeprefix(f'{peer.title}, ')} {row['peer']:,} of {row['ours']:,}" for row in results)
    print(f"{peer.title}: {'; '.join(counts)}", flush=True)
    if train and not problems:
        try:
            made = bench.step(peer, export, min(2, len(rows)))
        except RuntimeError as error:
            return [f"does not train: {error}"], results
        results.append(_result(peer, "DPO steps", 1, made["steps"], "steps"))
        print(f"{peer.title}: {made['steps']} step made, loss {made['loss']:.6f}", flush=True)
        if made["steps"] != 1 or not math.isfinite(made["loss"]) or not made["moved"]:
            problems.append(f"no step was made: {made}")
    return problems, results


def _result(peer: Peer, case: str, ours: int, theirs: int, unit: str) -> dict:
    ratio = theirs / ours if ours else 0.0  # no clip can be read: no token is wanted
    return {"case": f"{peer.title}, {case}", "ours": ours, "peer": theirs, "ratio": ratio, "unit": unit}


def main(argv: Sequence[str] | None = None, variables: tuple[tuple[str, str], ...] = ()) -> int:
    """Export, check and train in every peer; 1 when anything differs.

    Args:
        argv: the command line.
        variables: for the peers' processes.
    """
    from dataset_builder.errors import KitError
    from dataset_builder.export import export

    parser = argparse.ArgumentParser(prog="python -m benchmarks.export_peers", description=__doc__.splitlines()[0])
    parser.add_argument(
        "dataset", nargs="?", default="mmaip-v", help="a dataset folder or Hub id (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, help="folder that keeps exports, logs and adapters")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        work = (args.output or Path(name)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        bench, problems, results = Bench(work, make_checkpoint(work / "checkpoint"), variables=variables), [], []
        for peer in TRAINERS:
            try:
                report = export(args.dataset, peer.shape, work / peer.shape, progress=False)
            except KitError as error:
                print(error, file=sys.stderr)
                return 2
            print("\n".join([f"{peer.shape}: {report.rows} rows, {report.videos} videos", *report.lines()]), flush=True)
            try:
                found, rows = check_peer(bench, peer, Path(report.output))
            except subprocess.CalledProcessError as error:
                print(f"{peer.title}: pip cannot install it (ended with {error.returncode})", file=sys.stderr)
                return 2
            problems += [f"{peer.title}: {problem}" for problem in found]
            results += rows
        write_results("export_peers", results)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
