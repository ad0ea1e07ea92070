"""Everything that LightEval 0.13 needs to be told otherwise, in one place. Nothing else in the kit patches it.

What it does by itself, and what :func:`install` makes of it:

* It imports all its built-in tasks first, one of which fetches from the network: only the custom task file is loaded.
* Its task listing shows names with a suite prefix only: every loaded task is listed. Results name no task's version:
  they do. Its average over tasks averages intervals too: it shows means only.
* It decodes videos through torchcodec: videos stay undecoded, the kit's own sampler reads them.
* Its prediction cache keys on configuration and row number, lies inside the checkpoint if that is given by an
  absolute path, and is written when everything is answered: it keys on the content of weights and data, always lies in
  the cache folder, and is written block by block, so that a stopped run goes on.
* Its vision model returns a text where a list of texts is expected, an empty answer then shifts all later ones, and a
  question without images is refused.
* Model hashes are asked of the Hub even for folders: they are computed.
* Its import turns gradients off for the whole process.
* It ends with exit code 0 whatever came out, and with a traceback where a line would do.
* It names the repo that results are pushed to after the whole path of a checkpoint, and has its card checked by
  huggingface.co whatever Hub is used.

The files: `documents.py` (tasks, rows, frames), `predictions.py` (answers and their cache), `vision.py` (its vision
model), `endings.py` (exit codes, pushing) and `patches.py` (which replaces what).
"""

from eval.lighteval_adapter import gradients  # noqa: F401, the first of all
from eval.lighteval_adapter.documents import VideoFrames, VideoTaskConfig, doc_frames, video_doc, video_task
from eval.lighteval_adapter.patches import install
from eval.lighteval_adapter.predictions import (
    PredictionCache,
    answer_through_cache,
    response,
    response_error,
)
from eval.lighteval_adapter.state import RUN

__all__ = [
    "RUN",
    "PredictionCache",
    "VideoFrames",
    "VideoTaskConfig",
    "answer_through_cache",
    "doc_frames",
    "install",
    "response",
    "response_error",
    "video_doc",
    "video_task",
]
