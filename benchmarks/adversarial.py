"""What a step of an adversarial method costs beside SimCLR's, and how strong its attack is.

    OMP_NUM_THREADS=1 python benchmarks/adversarial.py [--compile] [--json FILE]

Cost: processor time (on a GPU wall time) of forward and backward, in turns, as a multiple of plain
SimCLR's on the same clips; with replays, of one of them. ADVERSARIAL.COARSE_UNTIL lies between
the whole attack's and the coarse one's. Strength: by how much the attack raises the loss of the
perturbed views, as a share of what the whole attack in float32 does, on a network that ACL has
trained for a while on rendered motions. What a saving costs in robust accuracy only whole trainings
tell.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Report, Times, arguments, interleaved
from torch import Tensor

from vidcsl import builders
from vidcsl.builders.engine import build_precision
from vidcsl.config import load_config
from vidcsl.data.lists import Video, VideoList
from vidcsl.data.motions import draw_source, render
from vidcsl.engine.distributed import World
from vidcsl.objectives import ClipBatch, Method
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
    "acl, 1 step": ("ADVERSARIAL.STEPS", 1),
    "acl, 4 replays": ("ADVERSARIAL.REPLAYS", 4),
    "acl, not channels last": ("TRAIN.CHANNELS_LAST", False),
    "rocl, 7 steps": ("METHOD.NAME", "rocl", "ADVERSARIAL.STEPS", 7),
    "rocl, 5 steps": ("METHOD.NAME", "rocl"),
}
COMPILED = ("TRAIN.COMPILE", "default")
TARGETS = {"acl, 5 steps": 4.0, "acl, every 2nd frame": 4.0, "rocl, 7 steps": 5.0}


def main() -> None:
    """Cost, then strength."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--videos", type=int, default=24, help="of a step")
    parser.add_argument("--size", type=int, default=32, help="side of the frames")
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="time compiled encoders too")
    parser.add_argument("--steps", type=int, default=40, help="of training before strength is told")
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
    trained = _trained(_method(device, *setting, "ADVERSARIAL.STEPS", 1), data, args.steps)
    acls = {name: method for name, method in methods.items() if name.startswith("acl")}
    gains = {name: _gain(method, trained, data) for name, method in acls.items()}
    whole = gains["acl, 5 steps, attack in float32"]
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    times = interleaved(
        {name: _step(method, data) for name, method in methods.items()},
        repeats=args.repeats,
        clock=clock,
    )
    for name, spent in times.items():
        strength = {"strength": gains[name] / whole} if name.startswith("acl") else {}
        report.row(step=name, seconds=spent.median, **_ratio(times, name), **strength)
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
    world = World(rank=0, size=1, device=device)
    method = builders.build_method(cfg, VideoList(videos, MOTIONS, "rendered"), world).train()
    builders.build_strategy(cfg).prepare(method, world)
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


def _trained(method: Method, data: ClipBatch, steps: int) -> dict[str, Tensor]:
    optimiser = torch.optim.AdamW(method.parameters(), lr=2e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        _forward(method, data)["loss"].backward()
        optimiser.step()
    return {name: tensor.clone() for name, tensor in method.state_dict().items()}


def _gain(method: Method, weights: dict[str, Tensor], data: ClipBatch) -> float:
    """By how much the attack raises the loss of the perturbed views; then as before."""
    fresh = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    method.load_state_dict(weights)
    attack = method.attack
    for _ in range(method.replays):
        found = _forward(method, data)
        found["loss"].backward()
        attack.climb()
    attacked = float(found["adversarial_loss"])
    with torch.no_grad():
        method.load_state_dict(weights)
        method.attack = lambda _network, clips, _loss, **_: clips  # type: ignore[assignment]
        still = float(_forward(method, data)["adversarial_loss"])
    method.attack = attack
    method.load_state_dict(fresh)
    return attacked - still


if __name__ == "__main__":
    main()
