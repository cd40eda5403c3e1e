"""The motion of a video as one vector, without labels and without training.

Two videos of one action move alike wherever they were filmed. What moves where, in which direction
and in which order is a histogram of dense optical flow over cells of space and time; its forebears
are the histograms of oriented flow of Laptev et al. (CVPR 2008) and Wang & Schmid (ICCV 2013). The
choice of frames, cells and normalisation is ours.
"""

from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from vidcsl.data.readers import Source, open_reader

FRAMES = 33  # evenly spaced over the video, the first and the last among them
SHORT_SIDE = 48  # pixels: a gesture of a hand still covers several
SEGMENTS = 8  # equal parts of the time
CELLS = 6  # rows and columns
MOTION_DIM = SEGMENTS * CELLS * CELLS * 4
VERSION = 1  # part of the cache's key: another descriptor is computed anew


def describe_motion(video: Source, *, backend: str = "auto") -> NDArray[np.float16]:
    """The motion descriptor of a file, float16 `[MOTION_DIM]`, see `motion_descriptor`.

    Raises:
        VideoError: the video cannot be decoded.
    """
    with open_reader(video, backend=backend, short_side=SHORT_SIDE) as reader:
        places = np.linspace(0, reader.num_frames - 1, FRAMES).round().astype(np.int64)
        frames = np.ascontiguousarray(reader.read(places))  # OpenCV takes no other layout
    return motion_descriptor(np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in frames]))


def motion_descriptor(frames: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Signed optical flow, averaged over cells of space and segments of time.

    Camera motion, as far as it moves all of a frame alike, is taken away: the median of each flow
    field. A square root keeps the fastest motion from deciding alone.

    Args:
        frames: grey frames `[T, H, W]`, at least two.

    Returns:
        float16 `[MOTION_DIM]`: for each segment and cell the mean flow to the right, down, left and
        up, in square roots of pixels a frame; all zero where nothing moves.
    """
    flow = np.stack([_flow(before, after) for before, after in pairwise(frames)])
    flow -= np.median(flow.reshape(len(flow), -1, 2), axis=1)[:, None, None]
    directions = np.concatenate([np.maximum(flow, 0), np.maximum(-flow, 0)], axis=-1)
    # INTER_AREA is the exact mean over each cell, whether or not the cells divide the frame.
    cells = np.stack(
        [cv2.resize(field, (CELLS, CELLS), interpolation=cv2.INTER_AREA) for field in directions]
    )
    segments = [segment.mean(axis=0) for segment in np.array_split(cells, SEGMENTS)]
    return np.sqrt(np.stack(segments)).astype(np.float16).reshape(-1)


def _flow(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Dense flow `[H, W, 2]` in pixels, right and down; Farnebäck (SCIA 2003)."""
    flow: NDArray[np.float32] = cv2.calcOpticalFlowFarneback(  # type: ignore[call-overload]
        before,
        after,
        None,
        pyr_scale=0.5,
        levels=3,
        winsize=9,
        iterations=3,
        poly_n=5,
        poly_sigma=1.1,
        flags=0,
    )
    return flow
