"""Supervised fine-tuning on video questions with known answers.

    accelerate launch recipes/sft.py --config recipes/configs/sft.yaml --model_name_or_path CKPT --output_dir OUT

Starts from a checkpoint, or from config with `--tiny_arch` (the toy world's models). All questions of a clip are packed
into one multi-turn sequence, so that the video is encoded once for all of them. The result is an ordinary checkpoint
folder (safetensors, processor, chat template), complete or absent.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from dataset_builder.errors import KitError, run_cli


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


def train(model, processor, clips: list, args, num_frames: int = 8, pack: bool = True, encoder=None):
    """Train a model on packed clips with the transformers Trainer.

    Args:
        model: image-text-to-text model, trained in place.
        processor: its processor.
        clips: `recipes.sft_data.Clip`s.
        args: `transformers.TrainingArguments`.
        num_frames: frames sampled per video.
        pack: see `SFTScriptArguments`.
        encoder: a `ClipEncoder` to share with earlier runs on the same clips.

    Returns:
        The Trainer's metrics (`train_loss`, `train_runtime`, …).
    """
    from transformers import PrinterCallback, Trainer

    from recipes.sft_data import ClipEncoder, SFTCollator

    encoder = encoder or ClipEncoder(processor, num_frames)
    args.remove_unused_columns = False  # the collator reads whole clips
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=clips,
        data_collator=SFTCollator(encoder, args.seed, pack),
    )
    if args.disable_tqdm:
        trainer.remove_callback(PrinterCallback)
    metrics = trainer.train().metrics
    model.eval()
    return metrics


def main() -> None:
    """Parse, load, train, save."""
    import transformers
    from trl import TrlParser

    parser = TrlParser((SFTScriptArguments, transformers.TrainingArguments))
    script, training = parser.parse_args_and_config()
    for name in ("questions", "videos"):
        if getattr(script, name) is None:
            raise KitError(f"--{name} is needed")
        if not Path(getattr(script, name)).exists():
            raise KitError(f"--{name} {getattr(script, name)}: there is no such file or folder")
    if (script.model_name_or_path is None) == (script.tiny_arch is None):
        raise KitError("give either --model_name_or_path or --tiny_arch")

    from recipes.checkpoints import place, save_checkpoint
    from recipes.sft_data import read_clips
    from recipes.video_dpo import freeze_vision

    clips = read_clips(script.questions, script.videos, script.splits)
    if not clips:
        raise KitError(f"{script.questions}: no row to train on (splits: {script.splits or 'all'})")
    if script.tiny_arch:
        from dataset_builder.toy_models import ARCHS, make_tiny

        if script.tiny_arch not in ARCHS:
            raise KitError(f"--tiny_arch {script.tiny_arch}: choose one of {', '.join(ARCHS)}")
        model, processor = make_tiny(script.tiny_arch, training.seed)
    else:
        from dataset_builder.models import load_model

        loaded = load_model(script.model_name_or_path, device="cpu")
        model, processor = loaded.model, loaded.processor
    if script.freeze_vision:
        freeze_vision(model)
    metrics = train(model, processor, clips, training, script.num_frames, script.pack)
    if int(os.environ.get("RANK", "0")) == 0:
        place(Path(training.output_dir), lambda folder: save_checkpoint(model, processor, folder))
        print(f"trained on {len(clips)} clips, loss {metrics['train_loss']:.3f}; checkpoint in {training.output_dir}")


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
