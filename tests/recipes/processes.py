"""Recipe commands in processes of their own, for the tests of several processes and of kills.

A command with TRL costs seven seconds of imports. Here a warm process imports once and forks for every command; the
child is a process like any other: its own group, its own environment, its own end.

    torchrun --nproc-per-node 2 -m tests.recipes.processes COMMANDS.json     # every command, by both processes
    python -m tests.recipes.processes                                        # :class:`Warm` talks to it

A command may be told to die: at its k-th write into the output folder, or at its k-th forward pass, or so many seconds
after that. Then the whole process group gets SIGKILL.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLONE = Path(__file__).parents[2]
WRITES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
FSDP2 = {  # what `accelerate launch --config_file recipes/configs/fsdp2.yaml` sets, in fp32
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
}


@dataclass(frozen=True)
class Death:
    """Where a command dies.

    Attributes:
        kind: ``write`` or ``forward``.
        at: the how many-eth of its kind, from 1.
        delay: seconds after that; the command goes on meanwhile.
    """

    kind: str
    at: int
    delay: float = 0.0


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: exit code; −9 when it was killed.
        log: what it printed.
        steps: optimizer steps it finished.
        counts: how often it did what a :class:`Death` can be set to (only if it ended by itself).
    """

    code: int
    log: str
    steps: int
    counts: dict[str, int]


class Warm:
    """A process that has imported everything and forks for every command."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.recipes.processes"],
            cwd=CLONE,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, recipe: str, words: list[str], folder: Path, death: Death | None = None) -> Ended:
        """Run ``recipes/RECIPE.py WORDS`` to its end.

        Args:
            recipe: ``iter_w2s`` or ``dpo``.
            words: its command line.
            folder: its output folder, whose writes count; a log is written beside it.
            death: where it dies.
        """
        log = folder.with_name(f"{folder.name}.{time.monotonic_ns()}.log")
        dies = None if death is None else vars(death)
        order = {"recipe": recipe, "argv": words, "log": str(log), "folder": str(folder), "death": dies}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        said, steps = log.read_text(), log.with_suffix(".steps").read_bytes()
        counts = log.with_suffix(".counts")
        return Ended(code, said, len(steps), json.loads(counts.read_text()) if counts.exists() else {})

    def close(self) -> None:
        """End it."""
        self._process.stdin.close()
        self._process.wait(30)


def warm_up() -> None:
    """Import what the recipes import when they run."""
    for name in ("recipes.dpo", "recipes.iter_w2s", "recipes.workbench", "recipes.rounds", "recipes.video_dpo"):
        importlib.import_module(name)
    from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor  # noqa: F401


def watch(order: dict[str, Any]) -> dict[str, int]:
    """Count a command's writes, forward passes and steps; kill its group where it is to die.

    Returns:
        The counts, which go on growing.
    """
    from torch.nn.modules.module import register_module_forward_pre_hook
    from torch.optim.optimizer import register_optimizer_step_post_hook

    counts = {"write": 0, "forward": 0}
    death, folder = order.get("death"), order["folder"]
    steps = os.open(Path(order["log"]).with_suffix(".steps"), os.O_WRONLY | os.O_CREAT)

    def tick(kind: str) -> None:
        counts[kind] += 1
        if death is None or kind != death["kind"] or counts[kind] != death["at"]:
            return
        if death["delay"] and os.fork():
            return  # goes on until the child below kills both
        time.sleep(death["delay"])
        os.killpg(0, signal.SIGKILL)

    def audit(event: str, args: tuple) -> None:
        if event not in WRITES or not str(args[0]).startswith(folder):
            return
        if event != "open" or args[2] & (os.O_WRONLY | os.O_RDWR):
            tick("write")

    sys.addaudithook(audit)
    register_module_forward_pre_hook(lambda module, inputs: tick("forward"))
    register_optimizer_step_post_hook(lambda *args: os.write(steps, b".") and None)
    return counts


def fork(order: dict[str, Any], environment: dict[str, str] | None = None) -> int:
    """Fork a child that runs one command.

    Args:
        order: ``recipe``, ``argv``; for :class:`Warm` also ``log``, ``folder``, ``death``.
        environment: added to the child's.

    Returns:
        Its exit code, −9 when it was killed.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 70
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: not to outlive the process that waits for it
        os.environ.update(environment or {})
        counts = {}
        if "log" in order:
            os.setsid()
            out = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(out, 1)
            os.dup2(out, 2)
            counts = watch(order)
        if os.environ.get("ACCELERATE_USE_FSDP") == "true":
            shard_on_cpu()
        from recipes.settings import run_recipe

        module = importlib.import_module(f"recipes.{order['recipe']}")
        code = run_recipe(lambda: module.main(order["argv"]))
        if counts:
            Path(order["log"]).with_suffix(".counts").write_text(json.dumps(counts))
    except BaseException:  # a forked child must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def shard_on_cpu() -> None:
    """Let accelerate share out a model among CPU processes, and say at the end of training that it did.

    accelerate 1.15 looks at FSDP on accelerators only (``AcceleratorState.__init__`` has a list of devices): on CPUs it
    silently trains with DDP. Nothing but that decision is made here; plugin, wrapping, and saving are its own.
    """
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.tensor import DTensor

    from recipes.video_dpo import VideoDPOTrainer

    decide, finish = AcceleratorState.__init__, VideoDPOTrainer.finish

    def decide_for_cpu(self, *args, fsdp_plugin=None, **kwargs):
        decide(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = self.distributed_type

    def count_and_finish(self, *args, **kwargs):
        parameters = dict(self.model.named_parameters())
        parts = {n: p.to_local().numel() for n, p in parameters.items() if isinstance(p, DTensor)}
        left = {n for n, p in parameters.items() if p.requires_grad and n not in parts}
        whole = sum(parameters[n].numel() for n in parts)
        said = f"rank {self.args.process_index}: {len(parts)} tensors sharded, {len(left)} trained ones not"
        sys.stdout.write(f"{said}, {sum(parts.values())} of {whole} elements here\n")  # one write, or lines mix
        return finish(self, *args, **kwargs)

    AcceleratorState.__init__, VideoDPOTrainer.finish = decide_for_cpu, count_and_finish


def main(argv: list[str]) -> int:
    """All commands of a file, in turn, by every process of a torchrun; or commands from stdin."""
    warm_up()
    if argv:
        for number, order in enumerate(json.loads(Path(argv[0]).read_text())):
            # torchrun's own store serves one meeting of the processes; every command gets a store of its own.
            store = {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": str(order["port"])}
            if code := fork(order, {**order.get("environment", {}), **store}):
                print(f"command {number} ended with {code}", file=sys.stderr)
                return 1
        return 0
    for line in sys.stdin:
        print(fork(json.loads(line)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
