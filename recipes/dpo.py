"""Video DPO alone, with the arguments of TRL's `dpo_vlm.py`.

    accelerate launch recipes/dpo.py --dataset_name mmaip-v --model_name_or_path Qwen/Qwen2.5-VL-3B-Instruct \\
        --output_dir runs/dpo --use_peft --learning_rate 5e-6 --max_steps 200 --bf16 true --gradient_checkpointing true

--dataset_name is a dataset folder of this kit, any other dataset folder or NAMESPACE/NAME on the Hub, a folder that
`save_to_disk` wrote, a folder with train.jsonl and test.jsonl, or one .jsonl or .parquet file. Its rows have

    video       a path (relative to the dataset), a folder of frames, stored bytes or a Video column; or `videos`, a
                list of one; or `frames`, a list of pictures or their paths (`fps` of them a second, 2 by default)
    prompt      messages or text; left out when chosen and rejected hold the whole conversation
    chosen, rejected    messages or text

A prompt without a video part gets it in front of its first user text. With --eval_strategy steps, --dataset_test_split
is evaluated (`validation` for a dataset of this kit). With --precompute_ref_log_probs true every clip is read before
the first step, so one that cannot be read does not stop a long run.

With --save_strategy steps the same command goes on at the last checkpoint. `output_dir` gets an ordinary checkpoint, or
an adapter with --use_peft, in safetensors. The checkpoint-* folders are the trainer's own, with an optimizer state in
pickle: they are there to go on from, and can be deleted when the run has ended. Nothing is sent anywhere unless
--push_to_hub is given; then the result goes to HF_ENDPOINT, without checkpoint-*.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from dataset_builder.errors import KitError
from recipes.settings import identity_of, option, read_yaml, refuse, run_recipe

# What a result consists of; the trainer's checkpoints lie beside it.
RESULTS = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt")
OWN = "dpo.json"  # what the folder was made from


def parse(argv: list[str]):
    """(TRL's `ScriptArguments`, `VideoDPOConfig`, TRL's `ModelConfig`) of a command line, `--config FILE.yaml` allowed.

    Raises:
        KitError: for a missing file, an unknown key in the YAML or a value out of range.
    """
    values = read_yaml(option(argv, "config")) if option(argv, "config") else {}
    for name in ("model_name_or_path", "dataset_name"):
        if not any(word in ("-h", "--help") for word in argv) and not (option(argv, name) or values.get(name)):
            raise KitError(f"--{name} is needed (or `{name}:` in the YAML)")
    # TRL still sets names that transformers has renamed; nothing a person who types this command could change.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    import yaml
    from trl import ModelConfig, ScriptArguments, TrlParser

    from recipes.video_dpo import VideoDPOConfig

    parser = TrlParser((ScriptArguments, VideoDPOConfig, ModelConfig), description=__doc__, formatter_class=_Help)
    parser.error = refuse
    parser.set_defaults(report_to="none", save_strategy="no")
    try:
        script, training, model = parser.parse_args_and_config(argv)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise KitError(f"configuration: {_one_line(error)}") from error
    if training.per_device_train_batch_size < 1:
        raise KitError("per_device_train_batch_size must be at least 1")
    if (folder := training.resume_from_checkpoint) and not Path(folder).is_dir():
        raise KitError(
            f"resume_from_checkpoint: there is no folder {folder}; without it the last one in output_dir is taken"
        )
    if script.dataset_streaming:
        raise KitError("dataset_streaming: rows are read by number here, their videos only when needed; leave it out")
    if model.load_in_4bit or model.load_in_8bit:
        raise KitError("quantized bases were not tried; keep a frozen base small with --dtype bfloat16 --use_peft")
    return script, training, model


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the text above."""


def train(script, training, model) -> Path:
    """Train as the parsed command says.

    Returns:
        The folder with the result.
    """
    import torch
    from accelerate.utils import broadcast_object_list
    from trl import get_peft_config

    from dataset_builder.models import load_model
    from recipes.checkpoints import last_step
    from recipes.dpo_data import load_pairs
    from recipes.video.sharding import gathered_state
    from recipes.video_dpo import VideoDPOTrainer, text_linear_names

    main_process = training.process_index == 0
    say = functools.partial(print, flush=True) if main_process else (lambda line: None)

    def note(line: str) -> None:
        say(f"note: {line}")

    read = functools.partial(
        load_pairs, script.dataset_name, script.dataset_config, say=note, media=bool(training.media)
    )
    rows, digest = read(script.dataset_train_split)
    held_out = read(script.dataset_test_split)[0] if training.eval_strategy != "no" else None
    loaded = load_model(model.model_name_or_path, model.model_revision, device="cpu", dtype=model.dtype or "float32")
    if model.attn_implementation:
        with _refusing():
            loaded.model.set_attn_implementation(model.attn_implementation)
    if script.ignore_bias_buffers:
        buffers = [name for name, buffer in loaded.model.named_buffers() if buffer.dtype == torch.bool]
        loaded.model._ddp_params_and_buffers_to_ignore = buffers
    peft = None
    if model.use_peft:
        model.lora_target_modules = model.lora_target_modules or text_linear_names(loaded.model)
        peft = get_peft_config(model)
    output = Path(training.output_dir)
    _claim(output, {**identity_of(training, model), "base": loaded.revision, "rows": digest}, main_process)
    repo = _open_repo(training, output) if training.push_to_hub and main_process else None
    training.push_to_hub = False  # the trainer would push its checkpoints too
    with _refusing():
        trainer = VideoDPOTrainer(
            model=loaded.model,
            args=training,
            train_dataset=rows,
            eval_dataset=held_out,
            processing_class=loaded.processor,
            peft_config=peft,
            say=note,
        )
    say(f"{model.model_name_or_path}: {len(rows)} pairs, world size {training.world_size}, {training.device}")
    last = (training.resume_from_checkpoint or last_step(output)) if main_process else None
    if training.world_size > 1:
        last = broadcast_object_list([last])[0]
    if last is not None:
        say(f"going on at {last}")
    try:
        trainer.train(resume_from_checkpoint=last)
    except (ValueError, ImportError) as error:
        if isinstance(error, ValueError) and not str(error).startswith("Unknown loss type"):
            raise
        raise KitError(f"configuration: {_one_line(error)}") from error  # TRL looks at it with the first batch only
    state = gathered_state(trainer.model, training.process_index == 0) if trainer.is_fsdp_enabled else None
    if trainer.checked is not None:
        say(f"self-check: shared and plain prompts differ by {trainer.checked:.1g} nats a token")
    trained = trainer.finish(merge=False)
    if main_process:
        _save(trained, loaded.processor, output, state)
        say(f"{'adapter' if peft else 'checkpoint'} in {output}")
    if repo is not None:
        say(f"pushed to {_push(repo, training, output)}")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    return output


def _claim(output: Path, identity: dict, write: bool) -> None:
    """Refuse a folder with a result or checkpoints of another configuration; remember this one's."""
    from recipes.checkpoints import claim

    results = [
        path.name for name in ("config.json", "adapter_config.json", "checkpoint-*") for path in output.glob(name)
    ]
    if results and not (output / OWN).exists():
        raise KitError(f"{output} holds {results[0]} of something else; choose another --output_dir")
    claim(output / OWN, identity, "the result or checkpoints" if results else None, write)


def _open_repo(training, output: Path) -> str:
    """Make the model repo before training: without a right to write, a run should not end in an error.

    Returns:
        Its full name.
    """
    from huggingface_hub import HfApi

    name = training.hub_model_id or output.name
    try:
        made = HfApi(token=training.hub_token).create_repo(name, private=training.hub_private_repo, exist_ok=True)
    except Exception as error:  # HTTP errors, no network, offline mode, a bad name: each kind has its own class
        raise KitError(f"--push_to_hub: {name} cannot be made: {_one_line(error)}") from None
    return made.repo_id


def _push(repo: str, training, output: Path) -> str:
    from huggingface_hub import HfApi

    try:
        commit = HfApi(token=training.hub_token).upload_folder(
            repo_id=repo,
            folder_path=output,
            allow_patterns=list(RESULTS),
            ignore_patterns=["checkpoint-*", "references/*", "*/*", OWN],
            commit_message="Video DPO",
        )
    except Exception as error:  # as above
        raise KitError(
            f"{output} is complete but could not be pushed to {repo}: {_one_line(error)}; "
            f"push it with `hf upload {repo} {output} --exclude 'checkpoint-*'`"
        ) from None
    return str(commit.repo_url)


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """What libraries raise for a value that they do not know, as one line."""
    try:
        yield
    except (ValueError, TypeError, ImportError) as error:
        raise KitError(f"configuration: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _save(model, processor, output: Path, state: dict | None) -> None:
    """Write the result beside the trainer's own checkpoints; it is complete when its configuration is there."""
    import os
    import shutil
    import tempfile

    from recipes.checkpoints import save_checkpoint

    with tempfile.TemporaryDirectory(dir=output, prefix=".result-") as folder:
        save_checkpoint(model, processor, Path(folder), state)
        Path(folder, "README.md").unlink(missing_ok=True)  # PEFT's empty card, with the base's path on this machine
        for path in sorted(Path(folder).iterdir(), key=lambda p: p.name.endswith("config.json")):
            if path.is_dir():
                shutil.rmtree(output / path.name, ignore_errors=True)
            os.replace(path, output / path.name)


def main(argv: list[str] | None = None) -> None:
    """Parse and train."""
    train(*parse(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
