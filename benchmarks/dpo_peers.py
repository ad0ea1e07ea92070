"""Stock TRL, ms-swift, LLaMA-Factory and ours on the same rows, with Qwen's real vocabulary and token ids.

Each peer gets an environment of its own (their pins exclude ours), made once in ``DIR/NAME`` from the package index.
The peers load the same checkpoint folder and the same mp4 files, train LoRA on the text model's linear layers in fp32
with vision frozen and the reference computed in every step, and are watched from inside by `benchmarks.dpo_hook`: step
times, peak memory, and the video tokens of every sequence, which must be equal in all tools. A peer writes one token
more an answer (the line break after the end of a turn), and samples the frames of a clip with its own reader.

With a vocabulary of this size much of a step on a CPU is the LM head. Ours and ms-swift score the answers' positions;
LLaMA-Factory scores every position, and so does stock TRL on a CPU (on a GPU the answers' alone). So the ratios against
those two hold for a CPU only; the ratios of `benchmarks.video_dpo`, vocabulary 1,024, hardly depend on it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.dpo_cases import FPS, LENGTHS, QWEN_VOCABULARY, make_processor, make_rows, save_checkpoint
from benchmarks.dpo_run import BATCH, RANK, WARM_UP, Spec, launch
from benchmarks.peers_env import environment

LENGTH = "340"
GIB = 2**30
HOOK = Path(__file__).with_name("dpo_hook.py")
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
}


@dataclass(frozen=True)
class Peer:
    """A tool with an environment of its own.

    Attributes:
        name: of the environment's folder.
        packages: what pip is asked for; the first is the tool.
        words: (work folder, steps) → what follows the watch's output on its command line.
        environment: further variables.
    """

    name: str
    packages: tuple[str, ...]
    words: object
    environment: dict[str, str]

    @property
    def title(self) -> str:
        """Name and version."""
        return self.packages[0].replace("==", " ")


def swift_words(work: Path, steps: int) -> list[str]:
    """ms-swift's DPO, the module that `swift rlhf` starts."""
    options = {
        "rlhf_type": "dpo",
        "model": work / "checkpoint",
        "model_type": "qwen2_5_vl",
        "template": "qwen2_5_vl",
        "tuner_type": "lora",
        "lora_rank": RANK,
        "lora_alpha": 16,
        "lora_dropout": 0,
        "use_cpu": "true",
        "use_hf": "true",
        "torch_dtype": "float32",
        "attn_impl": "sdpa",
        "dataset": work / "swift.jsonl",
        "split_dataset_ratio": 0,
        "dataset_num_proc": 1,
        "dataloader_num_workers": 0,
        "dataset_shuffle": "false",
        "train_dataloader_shuffle": "false",
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": "false",
        "max_steps": steps,
        "learning_rate": 1e-5,
        "max_length": 4096,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "output_dir": work / "swift",
    }
    return ["swift.cli.rlhf", *(str(word) for name, value in options.items() for word in (f"--{name}", value))]


def factory_words(work: Path, steps: int) -> list[str]:
    """LLaMA-Factory's DPO; writes the YAML file that it wants."""
    pixels = LENGTHS[LENGTH].height * LENGTHS[LENGTH].width
    options = {
        "stage": "dpo",
        "do_train": True,
        "model_name_or_path": str(work / "checkpoint"),
        "template": "qwen2_vl",
        "finetuning_type": "lora",
        "lora_rank": RANK,
        "lora_alpha": 16,
        "lora_target": "all",
        "use_cpu": True,
        "bf16": False,
        "infer_dtype": "float32",
        "disable_gradient_checkpointing": True,
        "flash_attn": "sdpa",
        "dataset": "rows",
        "dataset_dir": str(work),
        "video_max_pixels": pixels,
        "video_min_pixels": pixels,
        "video_fps": float(FPS),
        "cutoff_len": 4096,
        "disable_shuffling": True,
        "preprocessing_num_workers": 1,
        "dataloader_num_workers": 0,
        "overwrite_cache": True,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": 1,
        "max_steps": steps,
        "learning_rate": 1.0e-5,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "output_dir": str(work / "factory"),
        "overwrite_output_dir": True,
    }
    path = work / "factory.yaml"
    path.write_text(yaml.safe_dump(options))
    return ["llamafactory.cli", "train", str(path)]


PEERS = (
    Peer(
        "ms-swift",
        # decord: qwen-vl-utils falls back to torchvision.io.read_video, which torchvision no longer has
        (
            "ms-swift==4.6.0",
            "transformers==5.19.0",
            "trl==0.29.1",
            "datasets<4.8.5",
            "qwen-vl-utils",
            "decord",
            "torchvision",
        ),
        swift_words,
        {"FPS": str(FPS), "FORCE_QWENVL_VIDEO_READER": "decord"},
    ),
    Peer(
        "llamafactory",
        # torch: the newest that torchaudio, which it imports, accepts (both for CUDA 13.0)
        (
            "llamafactory==0.9.5",
            "transformers==5.6.0",
            "trl==0.24.0",
            "datasets==4.0.0",
            "torch==2.14.1",
            "torchaudio==2.11.0",
        ),
        factory_words,
        {},
    ),
)


def write_data(work: Path, count: int) -> None:
    """Checkpoint, mp4 files and both peers' lists of rows, as each documents them."""
    length = LENGTHS[LENGTH]
    save_checkpoint(work / "checkpoint", QWEN_VOCABULARY, length)
    clips = work / "clips"
    clips.mkdir()
    swift, factory = [], []
    for row in make_rows(length, count, make_processor(QWEN_VOCABULARY, length)):
        path = clips / row["video"]["path"]
        path.write_bytes(row["video"]["bytes"])
        question = row["prompt"][0]["content"][1]["text"]
        chosen, rejected = (row[side][0]["content"][0]["text"] for side in ("chosen", "rejected"))
        turns = [{"role": "user", "content": f"<video>{question}"}, {"role": "assistant", "content": chosen}]
        swift.append({"messages": turns, "rejected_response": rejected, "videos": [str(path)]})
        said = {side: {"from": "gpt", "value": text} for side, text in (("chosen", chosen), ("rejected", rejected))}
        asked = [{"from": "human", "value": f"<video>{question}"}]
        factory.append({"conversations": asked, **said, "videos": [str(path)]})
    (work / "swift.jsonl").write_text("".join(json.dumps(row) + "\n" for row in swift))
    (work / "rows.json").write_text(json.dumps(factory))
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "videos": "videos"}
    info = {"rows": {"file_name": "rows.json", "formatting": "sharegpt", "ranking": True, "columns": columns}}
    (work / "dataset_info.json").write_text(json.dumps(info))


def run_peer(peer: Peer, python: Path, work: Path, steps: int, threads: int) -> dict:
    """One run of a peer in a fresh process.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    out = work / "seen.json"
    out.unlink(missing_ok=True)
    count = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    caches = {"HF_HOME": str(work / "cache"), "MODELSCOPE_CACHE": str(work / "cache")}
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    variables |= {**ENVIRONMENT, **count, **caches, **peer.environment}
    words = [str(python), str(HOOK), str(out), *peer.words(work, WARM_UP + steps)]
    done = subprocess.run(words, capture_output=True, text=True, env=variables, cwd=work)
    if done.returncode or not out.exists():
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise RuntimeError(lines[-1][:300] if lines else f"ended with {done.returncode} and said nothing")
    seen = json.loads(out.read_text())
    wanted = LENGTHS[LENGTH].video_tokens
    if seen["tokens"] != [wanted]:
        raise RuntimeError(f"trains on {seen['tokens']} video tokens a sequence, not on {wanted}")
    if len(seen["seconds"]) != steps:
        raise RuntimeError(f"made {WARM_UP + len(seen['seconds'])} steps, not {WARM_UP + steps}")
    return seen


def compare(folder: Path, runs: int, steps: int, threads: int = 2) -> list[dict]:
    """Time all tools in turns.

    Args:
        folder: where the peers' environments are kept.
        runs: interleaved runs of each tool.
        steps: timed steps of a run, after one warm-up step.
        threads: of every process.

    Returns:
        Rows for the results file: ours against each tool, ``online_reference`` and ``cached``, seconds and memory. A
        peer that does not run gets a row that says why.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    refused: dict[str, str] = {}
    pythons: dict[str, Path] = {}
    for peer in PEERS:
        try:
            pythons[peer.name] = environment(peer.name, list(peer.packages), folder)
        except subprocess.CalledProcessError as error:
            refused[peer.name] = f"pip cannot install {', '.join(peer.packages)} (it ended with {error.returncode})"
    seen: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)

        def spec(variant: str) -> Spec:
            return Spec(variant, "lora", LENGTH, f"{work}/ours", steps, QWEN_VOCABULARY, f"{work}/checkpoint", threads)

        write_data(work, spec("stock").rows)
        told = launch(spec("check"))
        print(f"loss {told['stock']:.6f} in stock TRL, {told['ours']:.6f} in ours", flush=True)
        launch(spec("fill"))
        for number in range(runs):
            for tool in ("stock", "online_reference", "cached", *pythons):
                peer = next((p for p in PEERS if p.name == tool), None)
                if tool in refused:
                    continue
                try:
                    one = run_peer(peer, pythons[tool], work, steps, threads) if peer else launch(spec(tool))
                except RuntimeError as error:
                    if peer is None:
                        raise
                    refused[tool] = str(error)
                    print(f"  {peer.title} does not run: {error}", flush=True)
                    continue
                assert one["tokens"] == [LENGTHS[LENGTH].video_tokens], f"{tool}: {one['tokens']} video tokens"
                trained = seen["stock"][0]["trainable"] if "stock" in seen else one["trainable"]
                assert one["trainable"] == trained, f"{tool}: trains {one['trainable']} parameters, not {trained}"
                seen.setdefault(tool, []).append(one)
                seconds = statistics.mean(one["seconds"])
                print(f"  run {number + 1}: {tool:<17} {seconds:.2f} s/step, {one['clips'][-1]} clips", flush=True)
    return table(seen, refused)


def table(seen: dict[str, list[dict]], refused: dict[str, str]) -> list[dict]:
    """Rows of the results: every tool against both of ours."""
    values = {
        "s/step": lambda one: statistics.mean(one["seconds"]),
        "GiB peak": lambda one: one["peak"] / GIB,
    }

    def median(tool: str, unit: str) -> float:
        return statistics.median(values[unit](one) for one in seen[tool])

    titles = {"stock": "stock TRL", **{peer.name: peer.title for peer in PEERS}}
    rows = []
    for tool, title in titles.items():
        for variant in ("online_reference", "cached"):
            for unit in values:
                ours = median(variant, unit)
                case = f"vocabulary {QWEN_VOCABULARY:,}, {variant} against {title}"
                if tool in refused or tool not in seen:
                    case, peer = f"{case}: did not run: {refused.get(tool, 'no run')}", 0.0
                else:
                    peer = median(tool, unit)
                rows.append({"case": case, "ours": ours, "peer": peer, "ratio": peer / ours, "unit": unit})
    return rows


__all__ = ["PEERS", "compare", "run_peer", "write_data"]

if __name__ == "__main__":
    sys.exit("run it as: python -m benchmarks.video_dpo --peers [DIR]")
