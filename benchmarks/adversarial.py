"""What a step of an adversarial method costs beside SimCLR's.

    OMP_NUM_THREADS=1 python benchmarks/adversarial.py [--compile] [--json FILE]

Processor time (on a GPU wall time) of forward and backward, in turns, as a multiple of plain
SimCLR's on the same clips; with replays, of one of them. ADVERSARIAL.COARSE_UNTIL lies between
the whole attack's and the coarse one's. What a saving leaves of the attack is measured by
attack_strength.py, what it costs in robust accuracy only whole training runs show.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Report, Times, arguments, interleaved

from vidcsl.config import load_config
from vidcsl.data.lists import Video, VideoList
from vidcsl.data.synthetic import draw_source, render
from vidcsl.distributed import DistributedContext
from vidcsl.methods import ClipBatch, Method
from vidcsl.pipelines.method import build_method
from vidcsl.pipelines.training import build_precision, build_strategy
from vidcsl.seeding import numpy_generator

CONFIG = Path(__file__).parents[1] / "configs" / "ucf101_10_acl.yaml"
PLAIN = load_config(CONFIG)
MOTIONS = ("sway", "rise", "spin")
FULL = ("ADVERSARIAL.PRECISION", "float32")
VARIANTS: dict[str, tuple[Any, ...]] = {
    "acl, 5 steps": (),
    "acl, 5 steps, attack in float32": FULL,
    "acl, every 2nd frame": ("ADVERSARIAL.EVERY", 2),
    "acl, 3/4 of the side": ("ADVERSARIAL.SCALE", 0.75),
    "acl, half of the side": ("ADVERSARIAL.SCALE", 0.5),
    "acl, 3 steps": ("ADVERSARIAL.STEPS", 3),
    "acl, 2 steps": ("ADVERSARIAL.STEPS", 2),
    "acl, 1 step": ("ADVERSARIAL.STEPS", 1),
    "acl, 4 replays": ("ADVERSARIAL.REPLAYS", 4),
    "acl, not channels last": ("TRAIN.CHANNELS_LAST", False),
    "rocl, 7 steps": ("METHOD.NAME", "rocl", "ADVERSARIAL.STEPS", 7),
    "rocl, 5 steps": ("METHOD.NAME", "rocl"),
}
COMPILED = ("TRAIN.COMPILE", "default")
TARGETS = {
    "acl, 5 steps": 4.0,
    "acl, 3 steps": 4.0,
    "acl, every 2nd frame": 4.0,
    "rocl, 7 steps": 5.0,
}


def main() -> None:
    """A row for each variant."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--videos", type=int, default=24, help="of a step")
    parser.add_argument("--size", type=int, default=32, help="side of the frames")
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="time compiled encoders too")
    args = parser.parse_args()
    report = Report("adversarial", ["torchvision"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    setting = ("MODEL.FRAME_SIZE", args.size, "MODEL.WIDTH", args.width)
    data = _clips(args.videos, args.size, device)
    plain = ("METHOD.NAME", "simclr", "EVALUATE.NORMS", "clean")
    variants = {**VARIANTS, "simclr": plain}
    if args.compile:
        variants |= {"acl, compiled": COMPILED, "simclr, compiled": (*plain, *COMPILED)}
    methods = {name: _method(device, *setting, *words) for name, words in variants.items()}
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    times = interleaved(
        {name: _step(method, data) for name, method in methods.items()},
        repeats=args.repeats,
        clock=clock,
    )
    for name, spent in times.items():
        report.row(step=name, seconds=spent.median, **_ratio(times, name))
    for name, most in TARGETS.items():
        ratio = times[name].median / times["simclr"].median
        report.target(name, measured=ratio, wanted=f"at most {most:g} x SimCLR", met=ratio <= most)
    report.finish(args.json)


def _ratio(times: dict[str, Times], name: str) -> dict[str, float]:
    return {
        "of_simclr": times[name].median / times["simclr"].median,
        "spread": times[name].spread,
    }


def _method(device: torch.device, *words: Any) -> Method:
    cfg = load_config(CONFIG, [str(word) for word in words])
    videos = tuple(Video(Path(f"{i}.avi"), i % len(MOTIONS), i) for i in range(256))
    distributed = DistributedContext(rank=0, size=1, device=device)
    method = build_method(cfg, VideoList(videos, MOTIONS, "rendered"), distributed).train()
    build_strategy(cfg).prepare(method, distributed)
    return method


def _clips(videos: int, size: int, device: torch.device, *, views: int = 2) -> ClipBatch:
    pixels = []
    for video in range(videos):
        looks = draw_source(numpy_generator("looks", video), size=size)
        for view in range(views):
            rng = numpy_generator("clip", video, view)
            motion = MOTIONS[video % len(MOTIONS)]
            pixels.append(render(looks, motion=motion, frames=8, size=size, generator=rng))
    clips = torch.from_numpy(np.stack(pixels)).float().div(255).permute(0, 4, 1, 2, 3)
    ids = torch.arange(videos, device=device)
    shaped = clips.contiguous().unflatten(0, (videos, views)).to(device)
    return ClipBatch(shaped, ids % len(MOTIONS), ids, ids, progress=0.5)


def _forward(method: Method, data: ClipBatch) -> dict[str, Any]:
    """In bfloat16 where the device has it, as PRECISION auto chooses."""
    with build_precision(PLAIN, data.clips.device).autocast():
        return method(data)


def _step(method: Method, data: ClipBatch) -> Callable[[], None]:
    def step() -> None:
        method.zero_grad(set_to_none=True)
        _forward(method, data)["loss"].backward()
        method.after_step(data.progress)

    return step


if __name__ == "__main__":
    main()
