"""What corruptions over time do to real video, before and after frames are chosen.

    python benchmarks/corruption_order.py LIST [--root FOLDER] [--videos 40] [--harmed 10]

For the test videos of LIST, evenly chosen: the mean change in grey levels of clips of 8 frames with
stride 4 (112 x 112) under corruptions of the video at full rate, of which the clip then takes its
frames, and of the clip itself (`CORRUPT.ORDER` video and clip); and the ratio of clips that damaged
streams hit at all, by size. Without a model. Printed as two Markdown tables.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from vidcsl.augment.pipeline import EvalCrop
from vidcsl.data.dataset import ClipDataset
from vidcsl.data.lists import read_list
from vidcsl.data.loader import collate
from vidcsl.data.sampling import ViewSampler, uniform_clips
from vidcsl.pipelines.corrupt import clips_with_windows
from vidcsl.robustness.corruption_table import corrupted
from vidcsl.robustness.corruptions import SEVERITIES
from vidcsl.robustness.targets import Clips

HARM = ("C/frame_rate", "C/motion_blur", "P/freezing", "P/jumbling")
DAMAGE = ("C/bit_error", "C/packet_loss")
SIZES = ((8, 48), (16, 112))  # frames and side of a clip, stride 4


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("list", type=Path)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--videos", type=int, default=40, help="for the table of damage")
    parser.add_argument("--harmed", type=int, default=10, help="for the table of grey levels")
    args = parser.parse_args()
    print("| corruption | order | 1 | 3 | 5 |\n|---|---|---|---|---|", flush=True)
    batch = clips_of(args.list, args.root, videos=args.harmed, frames=8, side=112)
    for name in HARM:
        for order in ("video", "clip"):
            cells = [f"{change(in_order(batch, order), name, s):.1f}" for s in (1, 3, 5)]
            print(row(name, order, *cells), flush=True)
    print("\n| corruption | clip | order | 1 | 2 | 3 | 4 | 5 |\n|---|---|---|---|---|---|---|---|")
    for frames, side in SIZES:
        batch = clips_of(args.list, args.root, videos=args.videos, frames=frames, side=side)
        for name in DAMAGE:
            for order in ("video", "clip"):
                given = in_order(batch, order)
                hit = [corrupted(given, name, s).damaged.float().mean() for s in SEVERITIES]
                cells = [f"{100 * ratio:.0f} %" for ratio in hit]
                print(row(name, f"{frames} x {side} x {side}", order, *cells), flush=True)


def clips_of(path: Path, root: Path | None, *, videos: int, frames: int, side: int) -> Clips:
    """The central clips of evenly chosen videos, with their windows."""
    listed = read_list(path, root=root or path.parent)
    chosen = np.linspace(0, len(listed) - 1, min(videos, len(listed))).round().astype(int).tolist()
    sampler = ViewSampler((partial(uniform_clips, frames=frames, clips=1),), stride=4)
    dataset = ClipDataset(
        videos=listed, sampler=sampler, short_side=128, seed=0, purpose="test", windows=True
    )
    crop, parts = EvalCrop(size=side), []
    for index in chosen:
        batch = collate([dataset[(0, index)]])
        parts.extend(clips_with_windows(batch, crop, seeds=[index], videos=[index]))
    return Clips(
        torch.cat([part.clips for part in parts]),
        torch.cat([part.labels for part in parts]),
        [seed for part in parts for seed in part.seeds],
        [video for part in parts for video in part.videos],
        windows=[window for part in parts for window in part.windows or ()],
    )


def in_order(batch: Clips, order: str) -> Clips:
    """The clips with the videos around them, or without."""
    return batch if order == "video" else replace(batch, windows=None)


def change(batch: Clips, name: str, severity: int) -> float:
    """Mean change of a pixel value, in grey levels."""
    return float(255 * (corrupted(batch, name, severity).clips - batch.clips).abs().mean())


def row(*cells: str) -> str:
    """Of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
