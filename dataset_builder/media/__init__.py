"""Everything that touches a video file: probing, frame sampling, hashing.

Example:
    >>> from dataset_builder.media import sample_frames
    >>> frames = sample_frames("clip.mp4", num_frames=8)
    >>> frames.array.shape  # doctest: +SKIP
    (8, 480, 640, 3)
"""

from dataset_builder.media.choice import uniform_indices
from dataset_builder.media.folder import folder_sha256, pack_frame_folder
from dataset_builder.media.frames import Frames, VideoInfo, inspect_video, probe, sample_frames
from dataset_builder.media.hashing import file_sha256, perceptual_hash
from dataset_builder.media.source import MediaError, VideoSource

__all__ = [
    "Frames",
    "MediaError",
    "VideoInfo",
    "VideoSource",
    "file_sha256",
    "folder_sha256",
    "inspect_video",
    "pack_frame_folder",
    "perceptual_hash",
    "probe",
    "sample_frames",
    "uniform_indices",
]
