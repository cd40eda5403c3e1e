"""The motion descriptor against plain loops, and what it must not depend on."""

import math
from itertools import pairwise

import cv2
import numpy as np
import pytest

from vidcsl.teachers.motion import CELLS, MOTION_DIM, SEGMENTS, motion_descriptor


def moving_square(dx: int, dy: int, *, frames: int = 17, size: int = 48) -> np.ndarray:
    """Grey frames in which a textured square moves by (dx, dy) pixels a frame, torus-wise."""
    texture = np.random.default_rng(0).integers(0, 255, (12, 12)).astype(np.uint8)
    texture = cv2.GaussianBlur(texture, (5, 5), 1.5)
    clip = np.full((frames, size, size), 90, dtype=np.uint8)
    for number, frame in enumerate(clip):
        rows = (18 + dy * number + np.arange(12)) % size
        columns = (18 + dx * number + np.arange(12)) % size
        frame[np.ix_(rows, columns)] = texture
    return clip


def naive_descriptor(frames: np.ndarray) -> np.ndarray:
    """The definition, number by number; cells divide the frame here."""
    fields = []
    for before, after in pairwise(frames):
        flow = cv2.calcOpticalFlowFarneback(before, after, None, 0.5, 3, 9, 3, 5, 1.1, 0)
        u, v = flow[..., 0] - np.median(flow[..., 0]), flow[..., 1] - np.median(flow[..., 1])
        fields.append((u, v))
    pairs, (height, width) = len(fields), frames.shape[1:]
    bounds = [0]
    for segment in range(SEGMENTS):
        bounds.append(bounds[-1] + pairs // SEGMENTS + (segment < pairs % SEGMENTS))
    numbers = []
    for first, last in pairwise(bounds):
        for row in range(CELLS):
            for column in range(CELLS):
                for sign, axis in ((1, 0), (1, 1), (-1, 0), (-1, 1)):
                    total = 0.0
                    for pair in range(first, last):
                        for y in range(row * height // CELLS, (row + 1) * height // CELLS):
                            for x in range(column * width // CELLS, (column + 1) * width // CELLS):
                                total += max(0.0, sign * float(fields[pair][axis][y, x]))
                    area = height * width / CELLS**2
                    numbers.append(math.sqrt(total / area / (last - first)))
    return np.array(numbers)


@pytest.mark.parametrize("frames", [17, 12])
def test_equals_its_definition(frames: int) -> None:
    clip = moving_square(2, -1, frames=frames)
    found = motion_descriptor(clip)
    assert found.shape == (MOTION_DIM,)
    np.testing.assert_allclose(found, naive_descriptor(clip), rtol=2e-3, atol=2e-3)


def test_a_still_video_has_no_motion() -> None:
    assert not motion_descriptor(np.repeat(moving_square(0, 0)[:1], 17, axis=0)).any()


def test_motion_and_not_looks_makes_videos_alike() -> None:
    right, inverted = moving_square(2, 0), 255 - moving_square(2, 0)
    left = moving_square(-2, 0)
    one, same, other = (motion_descriptor(f).astype(np.float64) for f in (right, inverted, left))
    assert np.abs(one - same).sum() < 0.2 * np.abs(one - other).sum()


def test_a_pan_of_the_camera_is_taken_away() -> None:
    scene = cv2.GaussianBlur(
        np.random.default_rng(1).integers(0, 255, (48, 96)).astype(np.uint8), (9, 9), 3
    )
    pan = np.stack([scene[:, number : number + 48] for number in range(17)])
    moving = motion_descriptor(moving_square(2, 0))
    assert np.square(motion_descriptor(pan).astype(float)).mean() < 0.2
    assert np.square(moving.astype(float)).max() > 0.5
