"""Videos as every current browser plays them: H.264 in mp4."""

from __future__ import annotations

import io

import av
import numpy as np

from dataset_builder.media.container import open_video
from dataset_builder.media.decode import picture
from dataset_builder.media.source import VideoSource

_PIXELS = ("yuv420p", "yuvj420p")
# The same pictures give the same bytes: one thread, and no macroblock tree, whose decisions vary on small pictures.
_ENCODING = {"crf": "16", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}


def plays_in_browsers(source: VideoSource) -> bool:
    """Whether every current browser plays a video as it is: 8-bit 4:2:0 H.264 in mp4.

    Raises:
        MediaError: if it cannot be opened.
    """
    with open_video(source) as video:
        coded = video.stream.codec_context
        return (
            "mp4" in video.container.format.name.split(",") and coded.codec.name == "h264" and coded.pix_fmt in _PIXELS
        )


def browser_mp4(source: VideoSource) -> bytes:
    """A video's pictures at their own times as H.264 in mp4, without sound; odd sides lose a row or column.

    Raises:
        MediaError: if it cannot be decoded.
    """
    out = io.BytesIO()
    with open_video(source) as video:
        stream = video.stream
        with av.open(out, "w", format="mp4") as target:
            encoder = target.add_stream("libx264", rate=stream.average_rate or 25, options=_ENCODING)
            encoder.time_base = encoder.codec_context.time_base = stream.time_base
            encoder.pix_fmt = "yuv420p"
            for frame in video.container.decode(stream):
                pixels = picture(frame)
                pixels = pixels[: max(2, len(pixels) // 2 * 2), : max(2, pixels.shape[1] // 2 * 2)]
                if not encoder.codec_context.is_open:
                    encoder.height, encoder.width = pixels.shape[:2]
                shown = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                shown.pts, shown.time_base = frame.pts, stream.time_base
                target.mux(encoder.encode(shown))
            target.mux(encoder.encode())
    return out.getvalue()
