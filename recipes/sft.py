"""Supervised fine-tuning on video questions with known answers.

    accelerate launch recipes/sft.py --config recipes/configs/sft.yaml --model_name_or_path CKPT --output_dir OUT

Starts from a checkpoint, or from config with `--tiny_arch` (the toy world's models). All questions of a clip are packed
into one multi-turn sequence, so that the video is encoded once for all of them. The result is an ordinary checkpoint
folder (safetensors, processor, chat template), complete or absent. With `--save_strategy steps --save_steps N` the
Trainer's checkpoints lie in `.OUT-work` meanwhile, and the same command goes on there after a stop.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, field
from pathlib import Path

from dataset_builder.errors import KitError
from dataset_builder.toy_models import ARCHS, make_tiny
from recipes.settings import option, read_yaml, refuse, run_recipe


@dataclass
class SFTScriptArguments:
    """What to train on, from where, into what.

    Attributes:
        questions: JSONL with `video, question, answer` and optionally `weight` (chance per epoch) and `split`.
        videos: folder the `video` names are relative to.
        model_name_or_path: checkpoint folder or Hub id to start from.
        tiny_arch: start from an untrained tiny model of this architecture instead.
        splits: keep only rows of these splits.
        num_frames: frames sampled per video.
        pack: ask all questions of a clip in one sequence (faster); otherwise each in a sequence of its own.
        freeze_vision: leave the vision tower and its projector as they are.
    """

    questions: str | None = field(default=None, metadata={"help": "JSONL with video, question, answer."})
    videos: str | None = field(default=None, metadata={"help": "Folder the video names are relative to."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "Checkpoint to start from."})
    tiny_arch: str | None = field(default=None, metadata={"help": "Start from an untrained tiny model instead."})
    splits: list[str] | None = field(default=None, metadata={"help": "Keep only rows of these splits."})
    num_frames: int = field(default=8, metadata={"help": "Frames sampled per video."})
    pack: bool = field(default=True, metadata={"help": "All questions of a clip in one sequence."})
    freeze_vision: bool = field(default=False, metadata={"help": "Leave the vision tower as it is."})


def train(
    model,
    processor,
    clips: list,
    args,
    num_frames: int = 8,
    pack: bool = True,
    encoder=None,
    callbacks: tuple = (),
    last: str | None = None,
) -> dict:
    """Train a model on packed clips with the transformers Trainer.

    Args:
        model: image-text-to-text model, trained in place.
        processor: its processor.
        clips: `recipes.sft_data.Clip`s.
        args: `transformers.TrainingArguments`.
        num_frames: frames sampled per video.
        pack: see `SFTScriptArguments`.
        encoder: a `ClipEncoder` to share with earlier runs on the same clips.
        callbacks: further callbacks of the Trainer.
        last: checkpoint of the Trainer to go on from.

    Returns:
        The Trainer's metrics (`train_loss`, `train_runtime`, …).
    """
    from transformers import PrinterCallback

    from recipes.sft_data import SFTCollator
    from recipes.sft_trainer import SFTTrainer
    from recipes.video.encoding import ClipEncoder

    encoder = encoder or ClipEncoder(processor, num_frames)
    args.remove_unused_columns = False  # the collator reads whole clips
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=clips,
        data_collator=SFTCollator(encoder, args.seed, pack),
        callbacks=list(callbacks),
    )
    if args.disable_tqdm:
        trainer.remove_callback(PrinterCallback)
    metrics = {**trainer.train(resume_from_checkpoint=last).metrics, "train_loss": trainer.mean_loss}
    model.eval()
    return metrics


def precheck(argv: list[str]) -> None:
    """Check files before anything heavy is imported.

    Raises:
        KitError: naming what is missing.
    """
    if any(word in ("-h", "--help") for word in argv):
        return
    config = option(argv, "config")
    values = {} if config is None else read_yaml(config)
    for name in ("questions", "videos"):
        value = option(argv, name) or values.get(name)
        if value is None:
            raise KitError(f"--{name} is needed (or `{name}:` in the YAML)")
        kind, there = ("file", Path.is_file) if name == "questions" else ("folder", Path.is_dir)
        if not there(Path(str(value))):
            raise KitError(f"--{name} {value}: there is no such {kind}")


def parse(argv: list[str] | None = None):
    """Parse a command line with an optional `--config FILE.yaml` whose values it overrides, and check it.

    Returns:
        (`SFTScriptArguments`, `transformers.TrainingArguments`).

    Raises:
        KitError: for a missing file, an unknown key in the YAML or a value out of range.
    """
    argv = sys.argv[1:] if argv is None else argv
    precheck(argv)
    import torch
    import yaml
    from transformers import TrainingArguments
    from trl import TrlParser

    parser = TrlParser((SFTScriptArguments, TrainingArguments), description=SFTScriptArguments.__doc__)
    parser.error = refuse
    # The result is one folder, complete or absent; progress is lines; nothing is sent anywhere.
    parser.set_defaults(save_strategy="no", report_to="none", disable_tqdm=True)
    parser.set_defaults(dataloader_pin_memory=torch.cuda.is_available())  # or it is warned about without a GPU
    try:
        script, training = parser.parse_args_and_config(argv)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise KitError(f"configuration: {str(error).strip().splitlines()[0]}") from error
    if (script.model_name_or_path is None) == (script.tiny_arch is None):
        raise KitError("give either --model_name_or_path or --tiny_arch")
    if script.tiny_arch is not None and script.tiny_arch not in ARCHS:
        raise KitError(f"--tiny_arch {script.tiny_arch}: choose one of {', '.join(ARCHS)}")
    if script.num_frames < 1:
        raise KitError("num_frames must be at least 1")
    return script, training


def main(argv: list[str] | None = None) -> None:
    """Parse, load, train, save."""
    script, training = parse(argv)
    from dataset_builder.models import load_model
    from recipes.checkpoints import place, save_checkpoint
    from recipes.progress import ProgressLines
    from recipes.sft_data import read_clips
    from recipes.sft_trainer import resumable, settings_identity
    from recipes.video.vision import freeze_vision

    clips = read_clips(script.questions, script.videos, script.splits)
    if not clips:
        raise KitError(f"{script.questions}: no row to train on (splits: {', '.join(script.splits or ['all'])})")
    if script.tiny_arch:
        model, processor = make_tiny(script.tiny_arch, training.seed)
        base = script.tiny_arch
    else:  # fp32 masters whatever was saved; --bf16 true trains in mixed precision
        loaded = load_model(script.model_name_or_path, device="cpu", dtype="float32")
        model, processor, base = loaded.model, loaded.processor, loaded.revision
    if script.freeze_vision:
        freeze_vision(model)
    questions = sum(len(clip.turns) for clip in clips)
    main_process = training.process_index == 0
    say = functools.partial(print, flush=True) if main_process else (lambda line: None)
    say(f"{questions} questions about {len(clips)} clips, world size {training.world_size}")
    output, identity = Path(training.output_dir), settings_identity(script, training, base, clips)
    with resumable(training, identity, say) as last:
        lines = ProgressLines(say, "sft")
        frames, pack = script.num_frames, script.pack
        metrics = train(model, processor, clips, training, frames, pack, callbacks=(lines,), last=last)
        if main_process:
            place(output, lambda folder: save_checkpoint(model, processor, folder))
    say(f"loss {metrics['train_loss']:.3f}; checkpoint in {output}")


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
