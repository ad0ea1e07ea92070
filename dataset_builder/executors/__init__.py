"""Builds past one machine, on datatrove's executors: several local tasks, a Slurm cluster or a Ray cluster.

``submit`` plans in the process that typed the command and writes the plan into the shared work folder; ``launch`` is
the process in which datatrove runs; ``tasks`` is what it runs, on whatever machine: slices of the questions, then one
last step that selects and writes. The dataset is the same whatever the executor and the number of tasks.
"""

from dataset_builder.executors.options import EXECUTORS, check_options
from dataset_builder.executors.submit import run_executor

__all__ = ["EXECUTORS", "check_options", "run_executor"]
