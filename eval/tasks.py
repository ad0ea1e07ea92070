"""LightEval tasks of this kit, one entry each; LightEval loads this file by path.

name:
mmaip_v_toy

dataset:
the `benchmark` config (split test) of the folder or Hub id named by MMAIP_V_DATA, `mmaip-v` by default

abstract:
Open questions about short clips, judged against reference answers or by a visual judge (MMAIP_V_EVAL); accuracy with a
95 % interval clustered by video.

tags:
video, vqa

    lighteval custom CHECKPOINT eval/video_model.py mmaip_v_toy --custom-tasks eval/tasks.py
    python -m eval custom CHECKPOINT eval/video_model.py mmaip_v_toy    # the same, also without a network
"""

from eval.lighteval_adapter import VideoTaskConfig, install, video_doc
from eval.metric import judged_accuracy
from eval.settings import dataset_name, load_settings

install()  # plain `lighteval` has not been through eval/launcher.py

mmaip_v_toy = VideoTaskConfig(
    name="mmaip_v_toy",
    prompt_function=video_doc,
    hf_repo=dataset_name(),
    hf_subset="benchmark",
    hf_avail_splits=["validation", "test"],
    evaluation_splits=["test"],
    few_shots_split=None,
    generation_size=load_settings().max_new_tokens,
    metrics=[judged_accuracy()],
    version=1,
)

TASKS_TABLE = [mmaip_v_toy]
