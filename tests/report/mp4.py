"""The videos inside a page, decoded: H.264 encoders differ in bytes from machine to machine."""

import base64
import io
import re

import av
import numpy as np


def decode(video):
    """uint8 [T, H, W, 3] of an MP4's bytes, and the stream."""
    with av.open(io.BytesIO(video)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return np.stack(frames), stream


def videos_of(page):
    """The page without its videos, and the frames of each."""
    data = r"data:video/mp4;base64,([^\"]+)"
    videos = [decode(base64.b64decode(video))[0] for video in re.findall(data, page)]
    assert videos
    return re.sub(data, "", page), videos


def assert_videos_alike(videos, others):
    """Compare the frames of videos with those of others, as far as lossy encoders agree."""
    for video, other in zip(videos, others, strict=True):
        assert video.shape == other.shape
        assert np.abs(video.astype(int) - other).mean() < 3
