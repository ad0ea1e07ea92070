"""Extrapolating a 2 GB checkpoint: peak private memory and seconds, against mergekit's task arithmetic.

    python -m benchmarks.extrapolation [--peers] [--gb 2] [--runs 3]

Two random fp32 checkpoints of one Llama-shaped model, in shards. Every run is the ordinary command in a process of its
own, from start to exit; runs of ours and of the peer take turns, and the disk is brought to rest between them. Memory
is what only that process holds (`Private_Clean` + `Private_Dirty` of ``/proc/PID/smaps_rollup``, pages of mapped files
included) at its highest, looked at 10 times a second; the anonymous part (mapped files left out) is a row of its own.
`--peers` makes an environment for mergekit, runs it, and compares the two results weight by weight; without it only
ours is run and no results are written.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import RESULTS, write_results

ALPHA = 0.3
MERGEKIT = "mergekit==0.1.5"
HIDDEN, INNER, VOCABULARY = 2048, 5632, 32000
SHARDS = (("default file size", 5 * 10**9), ("files of 200 MB", 2 * 10**8))


def make_pair(folder: Path, gigabytes: float) -> None:
    """Write ``weak`` and ``strong``: fp32, of about `gigabytes` each, in shards of 500 MB."""
    import torch
    from safetensors.torch import save_file

    block = 4 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER
    layers = max(1, round((gigabytes * 1e9 / 4 - 2 * VOCABULARY * HIDDEN) / block))
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for i in range(layers):
        name = f"model.layers.{i}"
        shapes |= {f"{name}.self_attn.{part}_proj.weight": (HIDDEN, HIDDEN) for part in "qkvo"}
        shapes |= {f"{name}.mlp.{part}_proj.weight": (INNER, HIDDEN) for part in ("gate", "up")}
        shapes[f"{name}.mlp.down_proj.weight"] = (HIDDEN, INNER)
        shapes |= {f"{name}.{part}_layernorm.weight": (HIDDEN,) for part in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}
    shards: list[list[str]] = [[]]
    used = 0
    for name, shape in shapes.items():
        size = 4 * torch.Size(shape).numel()
        if shards[-1] and used + size > 500e6:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    generator = torch.Generator().manual_seed(0)
    for role in ("weak", "strong"):
        (folder / role).mkdir()
        (folder / role / "config.json").write_text(json.dumps(config))
    index = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weights = {name: 0.02 * torch.randn(shapes[name], generator=generator) for name in names}
        save_file(weights, folder / "weak" / file, {"format": "pt"})
        for tensor in weights.values():
            tensor += 1e-4 * torch.randn(tensor.shape, generator=generator)
        save_file(weights, folder / "strong" / file, {"format": "pt"})
        index |= dict.fromkeys(names, file)
    total = sum(4 * torch.Size(shape).numel() for shape in shapes.values())
    for role in ("weak", "strong"):
        content = {"metadata": {"total_size": total}, "weight_map": index}
        (folder / role / "model.safetensors.index.json").write_text(json.dumps(content))


def watch(words: list[str | Path], log: Path) -> dict[str, float]:
    """Run a command and look at its memory.

    Returns:
        ``seconds``, and the highest ``private`` and ``anonymous`` in bytes.

    Raises:
        SystemExit: when the command fails, with the end of what it printed.
    """
    os.sync()
    peak = {"private": 0, "anonymous": 0}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    began = time.perf_counter()
    with open(log, "w") as out, subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, env=environment) as child:
        while child.poll() is None:
            for name, value in _memory(child.pid).items():
                peak[name] = max(peak[name], value)
            time.sleep(0.1)
        seconds = time.perf_counter() - began
    if child.returncode:
        raise SystemExit(f"{words[0]} failed:\n" + "\n".join(log.read_text().splitlines()[-15:]))
    return {"seconds": seconds, **peak}


def _memory(pid: int) -> dict[str, int]:
    """What only this process and its children hold, in bytes."""
    found = {"private": 0, "anonymous": 0}
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, value = line.split(":")
            if name in ("Private_Clean", "Private_Dirty"):
                found["private"] += int(value.split()[0]) * 1024
            elif name == "Anonymous":
                found["anonymous"] += int(value.split()[0]) * 1024
    except (OSError, ValueError):  # it ended meanwhile
        return found
    for below in children:
        found = {name: value + _memory(int(below))[name] for name, value in found.items()}
    return found


def compare(ours: Path, peer: Path) -> float:
    """Largest difference of two checkpoints, relative to the largest weight of its tensor."""
    from safetensors import safe_open

    files = [
        json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        for folder in _indexed(ours, peer)
    ]
    assert files[0].keys() == files[1].keys()
    worst = 0.0
    for name in files[0]:
        a, b = (
            safe_open(folder / held[name], "pt").get_tensor(name).double()
            for folder, held in zip((ours, peer), files, strict=True)
        )
        worst = max(worst, float((a - b).abs().max() / a.abs().max()))
    return worst


def _indexed(*folders: Path) -> tuple[Path, ...]:
    """The folders, each with an index also where one file holds everything."""
    from safetensors import safe_open

    for folder in folders:
        index = folder / "model.safetensors.index.json"
        if not index.exists():
            with safe_open(folder / "model.safetensors", "pt") as held:
                index.write_text(json.dumps({"weight_map": dict.fromkeys(held.keys(), "model.safetensors")}))
    return folders


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=2.0, help="size of each checkpoint")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peers", action="store_true", help="make mergekit's environment and run it too")
    options = parser.parse_args()
    python = None
    if options.peers:
        from benchmarks.peers_env import environment

        python = environment("mergekit", [MERGEKIT])
    with tempfile.TemporaryDirectory(prefix="extrapolation-") as name:
        folder = Path(name)
        make_pair(folder, options.gb)
        print(f"two checkpoints of {_bytes(folder / 'weak') / 1e9:.2f} GB each", flush=True)
        rows = measure(folder, options.runs, python)
    if python is None:
        print("mergekit was not run (--peers makes its environment); no results file was written")
        return
    write_results("extrapolation", rows)
    path = RESULTS / "extrapolation.json"
    content = json.loads(path.read_text())
    content["versions"]["mergekit"] = MERGEKIT.partition("==")[2]
    path.write_text(json.dumps(content, indent=1) + "\n")


def measure(folder: Path, runs: int, python: Path | None) -> list[dict]:
    """Run ours and, when there is a Python for it, the peer: with one large file, and with small files.

    Returns:
        Rows for the results; empty without the peer.
    """
    weak, strong, ours, peer = (folder / part for part in ("weak", "strong", "ours", "peer"))
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"merge_method: task_arithmetic\nbase_model: {weak}\ndtype: float32\nparameters:\n  normalize: false\n"
        f"models:\n  - model: {strong}\n    parameters:\n      weight: {1 + ALPHA}\n"
    )
    rows = []
    for case, shard in SHARDS:
        commands = {
            "ours": [sys.executable, "-m", "recipes.extrapolate", weak, strong, "--alpha", str(ALPHA), "--output", ours]
        }
        commands["ours"] += ["--dtype", "float32", "--shard-size", str(shard)]
        if python is not None:
            commands["peer"] = [python.with_name("mergekit-yaml"), recipe, peer, "--no-copy-tokenizer"]
            commands["peer"] += ["--out-shard-size", str(shard)]
        found: dict[str, list[dict]] = {who: [] for who in commands}
        for _ in range(runs):
            for who, words in commands.items():
                shutil.rmtree(folder / who, ignore_errors=True)
                found[who].append(watch(words, folder / f"{who}.log"))
                print(f"{case}: {who}: " + ", ".join(f"{k} {v:.4g}" for k, v in found[who][-1].items()), flush=True)
        if python is None:
            continue
        worst = compare(ours, peer)
        print(f"{case}: largest difference {worst:.1e} of the tensor's largest weight", flush=True)
        if worst > 1e-6:
            raise SystemExit("the two results are not the same")
        for field, unit, scale in (
            ("private", "MiB peak", 2**20),
            ("anonymous", "MiB peak", 2**20),
            ("seconds", "s", 1),
        ):
            a, b = (statistics.median(run[field] for run in found[who]) / scale for who in ("ours", "peer"))
            what = {"private": "private memory", "anonymous": "anonymous memory", "seconds": "whole command"}[field]
            rows.append({"case": f"{what}, {case}", "ours": a, "peer": b, "ratio": b / a, "unit": unit})
    return rows


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


if __name__ == "__main__":
    main()
