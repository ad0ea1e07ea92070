"""
name:
mmaip_v, mmaip_v_toy, msvd_qa, msrvtt_qa, tgif_qa, activitynet_qa, ssv2_qa, webvid_qa, vidal_qa

dataset:
what MMAIP_V_DATA names, or the entry for a task under `data` in the YAML named by MMAIP_V_EVAL

abstract:
Open questions about videos, answers judged one by one (against references, or by a judge that watches the video), with
intervals clustered by video. Each task is described in a file of its own in eval/benchmarks/.

languages:
english

tags:
video, qa, open-ended

paper:
https://arxiv.org/abs/2411.16201

LightEval loads this file by its path:

    lighteval custom CHECKPOINT eval/video_model.py mmaip_v --custom-tasks eval/tasks.py
    python -m eval custom CHECKPOINT eval/video_model.py mmaip_v    # the same, also without a network
"""

from eval.benchmarks import BENCHMARKS
from eval.lighteval_adapter import install, video_task
from eval.metric import judged_verdicts

install()  # plain `lighteval` has not been through eval/launcher.py

TASKS_TABLE = [video_task(benchmark, judged_verdicts()) for benchmark in BENCHMARKS.values()]
