"""Corruptions of clips: milliseconds on one core, beside the published image code.

    python benchmarks/corruptions.py [--peers FOLDER] [--json FILE]

One clip of 16 frames, 224 x 224, each severity in turn. Peers run the same formula frame by frame
on what they take (uint8 images), ours on what it takes (a float32 clip). imagecorruptions 1.1.2
asks for two names that newer releases no longer have, which are put back; the rest is its code.
Where it has no such corruption, scikit-image, OpenCV or Pillow run the published formula.
`--gpu` times whole suites on 1,000 clips instead.
"""

import io
import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import Report, arguments, interleaved, peer

from vidcsl.robustness.corruptions import SEVERITIES, SUITES, corrupt, find, names, scored_names

FRAMES, SIDE = 16, 224
SEED = 0
Image = np.ndarray
Peer = Callable[[list[Image], int], Any]
"""(uint8 frames `[H, W, 3]`, severity) -> anything."""

# Ours, and the corruption of imagecorruptions with the same formula (other strengths, where named
# so: their cost does not depend on them).
IMAGE_CORRUPTIONS = {
    "P/gaussian_noise": "gaussian_noise",
    "P/shot_noise": "shot_noise",
    "C/shot_noise": "shot_noise",
    "P/impulse_noise": "impulse_noise",
    "P/speckle_noise": "speckle_noise",
    "P/defocus_blur": "defocus_blur",
    "P/motion_blur": "motion_blur",
    "P/zoom_blur": "zoom_blur",
    "P/jpeg": "jpeg_compression",
    "C/fog": "fog",
    "C/contrast": "contrast",
    "C/brightness": "brightness",
    "C/saturate": "saturate",
    "V/pixelate": "pixelate",
}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, help="folder where peers are installed apart")
    parser.add_argument("--repeats", type=int, default=3, help="of every severity (%(default)s)")
    parser.add_argument("--gpu", action="store_true", help="whole suites on 1,000 clips")
    args = parser.parse_args()
    if args.peers:
        sys.path.append(str(args.peers))
    if args.gpu:
        report = Report("corruptions, seconds for a whole suite on 1,000 clips of 16 x 224 x 224")
        on_gpu(report)
    else:
        use_one_core()
        packages = ("imagecorruptions", "scikit-image", "opencv-python-headless", "pillow", "numpy")
        report = Report("corruptions, ms per clip of 16 x 224 x 224", packages=packages)
        on_one_core(report, repeats=args.repeats)
    report.finish(args.json)


def on_one_core(report: Report, *, repeats: int) -> None:
    frames = video()
    clips = torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2)[None].float().div(255)
    peers = available_peers()
    gains = {}
    for name in names():
        ours, theirs = measure(name, peers.get(name), clips.contiguous(), frames, repeats=repeats)
        cells = {"corruption": name, "ms": ours}
        if theirs is not None:
            gains[name] = theirs / ours
            cells |= {"peer_ms": theirs, "times_faster": gains[name]}
        report.row(**cells)
    if not gains:
        return
    middle, least = median(gains.values()), min(gains, key=gains.__getitem__)
    report.target("median gain over peers", measured=middle, wanted=">= 5", met=middle >= 5)
    report.target(
        f"least gain ({least})", measured=gains[least], wanted=">= 1", met=gains[least] >= 1
    )


def use_one_core() -> None:
    """This process and its threads on one core, so that codecs get no more than the rest."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def video() -> list[Image]:
    """Frames with structure at all scales, moving: codecs and table look-ups see real work."""
    generator = torch.Generator().manual_seed(SEED)
    layers = [
        F.interpolate(
            torch.rand(1, 3, 4, side, side, generator=generator),
            (FRAMES, SIDE, SIDE),
            mode="trilinear",
        )
        for side in (4, 14, 56)
    ]
    clip = (layers[0] * 0.6 + layers[1] * 0.3 + layers[2] * 0.1)[0].permute(1, 2, 3, 0)
    return list((clip * 255).byte().numpy())


def measure(
    name: str, other: Peer | None, clips: torch.Tensor, frames: list[Image], *, repeats: int
) -> tuple[float, float | None]:
    """Milliseconds of ours and of the peer, the mean over severities of the medians."""
    totals = {"ours": 0.0, "peer": 0.0}
    for severity in SEVERITIES:
        runs: dict[str, Callable[[], Any]] = {
            "ours": lambda s=severity: corrupt(clips, name, severity=s, seeds=[SEED])
        }
        if other is not None:
            runs["peer"] = lambda s=severity: other(frames, s)
        for who, times in interleaved(runs, repeats=repeats).items():
            totals[who] += 1000 * times.median / len(SEVERITIES)
    return totals["ours"], totals["peer"] if other is not None else None


def available_peers() -> dict[str, Peer]:
    peers: dict[str, Peer] = {}
    for make in (image_corruptions, open_cv, pillow):
        peers |= {name: run for name, run in make().items() if name not in peers}
    return peers


def image_corruptions() -> dict[str, Peer]:
    resources = types.ModuleType("pkg_resources")
    resources.resource_filename = lambda package, file: str(  # type: ignore[attr-defined]
        Path(sys.modules[package.split(".")[0]].__file__ or "").parent / file
    )
    sys.modules.setdefault("pkg_resources", resources)
    if not hasattr(np, "float_"):
        np.float_ = np.float64  # type: ignore[attr-defined]
    module = peer("imagecorruptions")
    if module is None:
        return {}

    def run(frames: list[Image], severity: int, *, corruption: str) -> list[Image]:
        return [
            module.corrupt(frame, corruption_name=corruption, severity=severity) for frame in frames
        ]

    return {
        ours: lambda f, s, c=theirs: run(f, s, corruption=c)
        for ours, theirs in IMAGE_CORRUPTIONS.items()
    }


def open_cv() -> dict[str, Peer]:
    cv2 = peer("cv2", package="opencv")
    if cv2 is None:
        return {}

    def rotate(frames: list[Image], severity: int) -> list[Image]:
        degrees = find("P/static_rotation")[1].at(severity)["degrees"]
        matrix = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), degrees, 1)
        return [cv2.warpAffine(frame, matrix, (SIDE, SIDE)) for frame in frames]

    def rain(frames: list[Image], severity: int) -> list[Image]:
        return [rain_frame(cv2, frame, **find("C/rain")[1].at(severity)) for frame in frames]

    cv2.setNumThreads(1)
    return {"P/static_rotation": rotate, "C/rain": rain}


def rain_frame(
    cv2: Any, image: Image, *, area_per_drop: int, length: int, darkening: float
) -> Image:
    """The published rain: lines, a 3 x 3 blur under them, less contrast."""
    rng = np.random.default_rng(SEED)
    mask = np.zeros(image.shape[:2])
    for _ in range(SIDE * SIDE // area_per_drop):
        x, y = int(rng.integers(SIDE)), int(rng.integers(max(1, SIDE - length)))
        cv2.line(mask, (x, y), (x - 1, y + length), (220, 220, 220), 1)
    streaks = mask[..., None]
    shine = (streaks * (1 - image / 255.0) * (1 - image.mean() / 255.0)).astype(np.uint8)
    blurred = cv2.blur(image + shine, (3, 3))
    mixed = (blurred * (streaks / 255) + image * (1 - streaks / 255)) / 255
    means = mixed.mean((0, 1), keepdims=True)
    return (np.clip((mixed - means) * darkening + means, 0, 1) * 255).astype(np.uint8)


def pillow() -> dict[str, Peer]:
    """Where imagecorruptions is not to be had: the two of its corruptions that are Pillow's."""
    module = peer("PIL.Image", package="pillow")
    if module is None:
        return {}

    def jpeg(frames: list[Image], severity: int) -> list[Image]:
        quality = find("P/jpeg")[1].at(severity)["quality"]
        files = [io.BytesIO() for _ in frames]
        for frame, file in zip(frames, files, strict=True):
            module.fromarray(frame).save(file, "JPEG", quality=quality)
        return [np.asarray(module.open(file)) for file in files]

    return {"P/jpeg": jpeg}


def on_gpu(report: Report) -> None:
    """Every corruption and severity, in batches of 50 clips; one batch stands for all."""
    if not torch.cuda.is_available():
        print("skipped: no GPU")
        return
    clips = torch.rand(50, 3, FRAMES, SIDE, SIDE, device="cuda")
    for suite in SUITES:
        started = time.perf_counter()
        for name in scored_names(suite):
            for severity in SEVERITIES:
                corrupt(clips, name, severity=severity, seeds=range(len(clips)))
        torch.cuda.synchronize()
        report.row(suite=suite, seconds=1000 / len(clips) * (time.perf_counter() - started))


if __name__ == "__main__":
    main()
