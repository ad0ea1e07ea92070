"""Several processes take the step that one takes: two on one machine, two nodes, and two that share out the model.

The processes' losses are averaged. That is the global batch's loss when every process has equally many pairs and the
loss is a mean over pairs, as DPO's are; an SFT term is a mean over a process's answer tokens, so it is left out here
(its mean of means weighs tokens a little differently when answers differ in length).

Plain SGD moves every weight by its gradient, so equality of weights is equality of gradients. AdamW, whose first step
is the gradient's sign, would turn the rounding of a gradient near zero into a whole step.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recipes.arms.run import to_argv
from tests.recipes.processes import CLONE, FSDP2

TOY = str(CLONE / "recipes/configs/toy.yaml")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
CABLE = "10.77.113.0/30"  # between the two nodes
NEAR = 1e-5  # of the distance that training moved
SGD = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.3, "bf16": False, "use_cpu": True}
LORA = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0}


def dpo(dataset: Path, base: Path, output: Path, each: int, **more) -> dict:
    """`recipes/dpo.py` with so many pairs at a time in each process."""
    fields = {"dataset_name": dataset, "model_name_or_path": base, "output_dir": output}
    fields |= {"per_device_train_batch_size": each, "logging_steps": 1, **SGD, **more}
    return {"recipe": "dpo", "argv": to_argv(fields)}


def rounds(dataset: Path, base: Path, output: Path, each: int, **more) -> dict:
    """`recipes/iter_w2s.py`: two rounds, each with a step along the line."""
    fields = {"dataset_name": dataset, "model_name_or_path": base, "output_dir": output, "rounds": 2}
    fields |= {"per_device_train_batch_size": each, "sft_weight": 0.0, "alphas": [0.0, 0.5], "stop_early": False}
    fields |= {
        "max_new_tokens": 2,
        "max_malformed": 1.0,
        "max_repeated": 1.0,
        "max_chosen_drop": 1e3,
        "max_margin": 1e3,
    }
    return {
        "recipe": "iter_w2s",
        "argv": ["--config", TOY, *to_argv({**fields, "max_length_ratio": 1e3, **SGD, **more})],
    }


def launch(words: list[str], orders: list[dict], folder: Path, wrap: list[str] = (), **environment) -> subprocess.Popen:
    """Start commands in processes that torchrun makes."""
    file = folder / "commands.json"
    if not file.exists():  # the second node reads the first one's
        file.write_text(json.dumps([{**order, "port": free_port()} for order in orders]))
    words = [*wrap, *TORCHRUN, *words, "-m", "tests.recipes.processes", str(file)]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=CLONE, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def finish(process: subprocess.Popen, seconds: float = 200) -> str:
    """What it printed, once it has ended well."""
    try:
        said, _ = process.communicate(timeout=seconds)
    finally:
        process.terminate()  # torchrun ends its workers, whose children then die
        process.wait(60)
    assert process.returncode == 0, said[-6000:]
    return said


def alone(orders: list[dict]) -> None:
    """The same commands in this process."""
    from recipes import dpo, iter_w2s

    for order in orders:
        {"dpo": dpo, "iter_w2s": iter_w2s}[order["recipe"]].main(order["argv"])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint or an adapter, in float64."""
    file = next(path for path in (folder / "model.safetensors", folder / "adapter_model.safetensors") if path.exists())
    return {name: tensor.double() for name, tensor in load_file(file).items()}


def apart(one: dict, other: dict) -> float:
    """Euclidean distance over all tensors."""
    assert one.keys() == other.keys()
    return sum(float((one[name] - other[name]).square().sum()) for name in one) ** 0.5


def assert_near(two: Path, one: Path, base: Path) -> float:
    """Weights agree to a small part of how far they moved (an adapter's: of how long they are)."""
    mine, theirs = weights(two), weights(one)
    origin = {name: 0 * tensor for name, tensor in theirs.items()} if (one / "adapter_config.json").exists() else None
    moved = apart(theirs, origin or weights(base))
    assert moved > 0.01
    assert apart(mine, theirs) < NEAR * moved, f"{two.name}: {apart(mine, theirs):.2g} apart, moved {moved:.2g}"
    return apart(mine, theirs) / moved


RUNS = {"full": (dpo, {}), "lora": (dpo, LORA), "rounds": (rounds, {}), "rounds-lora": (rounds, LORA)}
SHARDED = {f"sharded-{name}": run for name, run in RUNS.items()}


@pytest.fixture(scope="module")
def two_processes(dataset, base, tmp_path_factory) -> tuple[Path, str]:
    """All the commands by two processes under one torchrun (which costs two imports of TRL), and by one."""
    folder = tmp_path_factory.mktemp("processes")
    orders = [make(dataset, base, folder / f"two-{name}", 2, **more) for name, (make, more) in RUNS.items()]
    for name, (make, more) in SHARDED.items():
        order = make(dataset, base, folder / f"two-{name}", 2, save_strategy="steps", save_steps=1, **more)
        orders.append({**order, "environment": FSDP2})
    running = launch(["--standalone", "--nproc-per-node", "2"], orders, folder)
    alone([make(dataset, base, folder / f"one-{name}", 4, **more) for name, (make, more) in RUNS.items()])
    return folder, finish(running)


@pytest.mark.parametrize("name", ["full", "lora"])
def test_dpo_in_two_processes(two_processes, base, name):
    folder, said = two_processes
    assert said.count("world size 2") == len(RUNS) + len(SHARDED)
    print(name, assert_near(folder / f"two-{name}", folder / f"one-{name}", base))


@pytest.mark.parametrize("name", ["rounds", "rounds-lora"])
def test_rounds_in_two_processes(two_processes, base, name):
    folder, said = two_processes
    assert said.count("2 rounds × 2 steps × 4 pairs, world size 2") == 4
    for number in (1, 2):
        print(name, assert_near(folder / f"two-{name}/round-{number}", folder / f"one-{name}/round-{number}", base))
    metrics = [json.loads((folder / f"{n}-{name}/round-2/metrics.json").read_text()) for n in ("two", "one")]
    assert metrics[0]["alpha"] == metrics[1]["alpha"]
    assert metrics[0]["train"]["train_loss"] == pytest.approx(metrics[1]["train"]["train_loss"], rel=1e-4)


def test_fsdp2_shares_out_all_that_is_trained(two_processes):
    _, said = two_processes
    assert said.count("self-check: shared and plain prompts differ by") >= 2
    counted = r"(\d+) tensors sharded, (\d+) trained ones not, (\d+) of (\d+) elements"
    for rank in (0, 1):
        found = [tuple(map(int, numbers)) for numbers in re.findall(rf"rank {rank}: {counted}", said)]
        assert len(found) == 6, "two runs and two times two rounds"
        assert all(sharded > 20 and left == 0 and here < 0.52 * whole for sharded, left, here, whole in found)


@pytest.mark.parametrize("name", list(RUNS))
def test_fsdp2_equals_one_process(two_processes, base, name):
    """In the second step one process has a clip more than the other: a sharded vision tower would never come back."""
    folder, _ = two_processes
    for part in ("round-1", "round-2") if "rounds" in name else ("",):
        print(name, part, assert_near(folder / f"two-sharded-{name}" / part, folder / f"one-{name}" / part, base))


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, LORA], ids=["full", "lora"])
def test_a_shared_out_model_goes_on_at_its_checkpoint(dataset, base, more, tmp_path):
    """With AdamW: torch 2.15 cannot load the empty state of plain SGD into a sharded optimizer."""
    output = tmp_path / "run"
    fields = {"optim": "adamw_torch", "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 1, **more}
    order = {**dpo(dataset, base, output, 2, **fields), "environment": FSDP2}
    two = ["--standalone", "--nproc-per-node", "2"]
    assert "going on at" not in finish(launch(two, [order], tmp_path))
    shutil.copytree(output, tmp_path / "whole")
    shutil.rmtree(output / "checkpoint-2")
    next(output.glob("*model.safetensors")).unlink()
    assert re.search("going on at .*checkpoint-1", finish(launch(two, [order], tmp_path)))
    mine, whole = weights(output), weights(tmp_path / "whole")
    assert apart(mine, whole) == 0


@pytest.fixture
def two_nodes() -> Iterator[list[tuple[list[str], str, str]]]:
    """Two network namespaces with a cable between them: (words before a command, network device, address) of each."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("two nodes need root and the `ip` command, to make network namespaces; nothing was checked")
    names = [f"kit-{os.getpid()}-{side}" for side in "ab"]
    devices = [f"kv{os.getpid() % 100000}{side}" for side in "ab"]
    addresses = [str(host) for host in ipaddress.ip_network(CABLE).hosts()]

    def ip(*words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"two nodes: `ip {' '.join(words)}` is not allowed here ({done.stderr.strip()})")

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", devices[0], "netns", names[0], "type", "veth", "peer", devices[1], "netns", names[1])
        for name, device, address in zip(names, devices, addresses):
            ip("-n", name, "addr", "add", f"{address}/30", "dev", device)
            ip("-n", name, "link", "set", device, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield [(["ip", "netns", "exec", n], d, a) for n, d, a in zip(names, devices, addresses)]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.slow
def test_two_nodes_in_two_network_namespaces(two_nodes, dataset, base, tmp_path):
    """One process on each; they can only meet over the cable. The guard lets the children use it (tests/guard)."""
    runs = {name: run for name, run in RUNS.items() if name in ("full", "rounds")}
    orders = [make(dataset, base, tmp_path / f"two-{name}", 2, **more) for name, (make, more) in runs.items()]
    running = []
    for rank, (inside, device, address) in enumerate(two_nodes):
        words = ["--nnodes", "2", "--node-rank", str(rank), "--nproc-per-node", "1", "--local-addr", address]
        words += ["--rdzv-backend", "c10d", "--rdzv-id", "kit", "--rdzv-endpoint", f"{two_nodes[0][2]}:29500"]
        words += ["--rdzv-conf", f"is_host={1 - rank}"]  # torchrun would ask by name, and both have the same
        cable = {"GLOO_SOCKET_IFNAME": device, "MMAIP_V_SOCKET_NET": CABLE}
        running.append(launch(words, orders, tmp_path, inside, **cable))
    alone([make(dataset, base, tmp_path / f"one-{name}", 4, **more) for name, (make, more) in runs.items()])
    said = [finish(process) for process in running]
    assert [text.count("world size 2") for text in said] == [2, 0], "the first process speaks"
    print("full", assert_near(tmp_path / "two-full", tmp_path / "one-full", base))
    for number in (1, 2):
        print("rounds", assert_near(*(tmp_path / f"{n}-rounds/round-{number}" for n in ("two", "one")), base))
