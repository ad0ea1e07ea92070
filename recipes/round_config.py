"""The training arguments of rounds; apart from `recipes.settings`, which is read without waiting for torch and TRL."""

from __future__ import annotations

from dataclasses import dataclass, field

from recipes.video_dpo import VideoDPOConfig


@dataclass
class IterW2SConfig(VideoDPOConfig):
    """`VideoDPOConfig` with other defaults.

    No schedule (the arms are to take equal steps), reference log-probabilities computed once per round, a
    checkpoint of the Trainer now and then within a round (only the last is kept).
    """

    precompute_ref_log_probs: bool = field(default=True, metadata={"help": "Compute references once per round."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Recompute activations to save memory."})
    bf16: bool | None = field(default=False, metadata={"help": "bf16 autocast; master weights stay fp32."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "The scheduler within a round."})
    train_sampling_strategy: str = field(default="sequential", metadata={"help": "Rounds shuffle rows."})
    logging_steps: float = field(default=5, metadata={"help": "Steps between progress lines."})
    save_strategy: str = field(default="steps", metadata={"help": "Trainer checkpoints within a round."})
    save_steps: float = field(default=50, metadata={"help": "Steps between them; rounds are always saved."})
    save_total_limit: int | None = field(default=1, metadata={"help": "How many of them are kept."})
    report_to: str | None = field(default="none", metadata={"help": "Where the Trainer logs to."})
    disable_tqdm: bool | None = field(default=True, metadata={"help": "No progress bars; progress is lines."})
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "Pin memory of batches."})
