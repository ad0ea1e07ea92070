"""What watches a training run: progress lines, and limits that end a round that goes wrong."""

from __future__ import annotations

import time
from collections.abc import Callable

from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

from recipes.guards import GuardLimits

transformers_logging.disable_progress_bar()  # the lines below take their place

Log = Callable[[str], None]


class ProgressLines(TrainerCallback):
    """One line now and then: step, rate, time left."""

    def __init__(self, log: Log, label: str, every: float = 5.0):
        self.log, self.label, self.every = log, label, every
        self._started = self._last = 0.0
        self._first = 0

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the clock."""
        self._started = self._last = time.monotonic()
        self._first = state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        """Say where training is, at most every few seconds."""
        now = time.monotonic()
        if state.is_world_process_zero and now - self._last >= self.every:
            self._last = now
            rate = (state.global_step - self._first) / (now - self._started)
            left = (state.max_steps - state.global_step) / max(rate, 1e-9)
            self.log(f"{self.label}: step {state.global_step}/{state.max_steps}, {rate:.2f} steps/s, {left:.0f} s left")


def step_logs(log_history: list[dict], key: str) -> list[dict]:
    """A Trainer's log entries of training steps: those with `key`, not those of an evaluation or of the end."""
    return [entry for entry in log_history if key in entry]


class StopAtLimits(TrainerCallback):
    """Ends a round in which chosen answers lose too much probability, or margins blow up, against its reference.

    Rewards are beta · (log-probability − the reference's), so TRL's logged rewards say both. They are looked at every
    `window` steps, averaged over these. What was logged before a stop counts: a resumed round ends where it would have.

    Args:
        limits: of the guards.
        beta: of DPO.
        window: steps.
    """

    def __init__(self, limits: GuardLimits, beta: float, window: int = 1):
        self.limits, self.beta, self.window = limits, beta, window
        self.reason: str | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        """A round that had reached a limit when it was stopped needs no more steps."""
        self._look(state, control)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Look at the last steps' metrics."""
        self._look(state, control)

    def _look(self, state, control) -> None:
        last = step_logs(state.log_history, "rewards/chosen")[-self.window :]
        if self.reason is not None or not last or state.global_step % self.window:
            return
        drop, margin = (sum(entry.get(f"rewards/{name}", 0.0) for entry in last) for name in ("chosen", "margins"))
        drop, margin = -drop / len(last) / self.beta, margin / len(last) / self.beta
        if drop > self.limits.chosen_logp_drop:
            self.reason = (
                f"chosen_logp: fell by {drop:.1f} nats within the round, limit {self.limits.chosen_logp_drop:g}"
            )
        elif margin > self.limits.margin:
            self.reason = f"margin: grew by {margin:.1f} nats within the round, limit {self.limits.margin:g}"
        if self.reason is not None:
            control.should_training_stop = True
