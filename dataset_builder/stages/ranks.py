"""Data-parallel sampling and judging under ``accelerate launch``: each process takes its share of the blocks."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from typing import Any

from dataset_builder.stages.job import Job


class Ranks:
    """The processes that ``accelerate launch`` or ``torchrun`` started, as accelerate's ``PartialState`` sees them."""

    def __init__(self, state: Any):
        self._state = state
        self.is_main: bool = state.is_main_process
        self.size: int = state.num_processes

    @classmethod
    def here(cls) -> Ranks | None:
        """The group this process belongs to, or None when it was started alone."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return None
        from accelerate import PartialState

        # The first process may wait for endpoints for days while the others stand at a barrier.
        return cls(PartialState(cpu=_no_gpu(), timeout=timedelta(days=30)))

    def share(self, job: Job) -> Job:
        """The job with this process's share of its blocks, on its own device."""
        blocks = job.blocks[self._state.process_index :: self.size]
        return replace(job, blocks=blocks, device=str(self._state.device))

    def wait(self) -> None:
        """Wait until every process is here."""
        self._state.wait_for_everyone()


def _no_gpu() -> bool:
    import torch

    return not torch.cuda.is_available()
