"""Small methods, detectors and batches for the tests."""

from functools import partial

import numpy as np
import torch
from torch import nn

from vidcsl.data.motions import draw_source, render
from vidcsl.models.heads import Norms, projector
from vidcsl.objectives import CONTRASTIVE, ClipBatch
from vidcsl.objectives.byol import BYOL
from vidcsl.objectives.ema import MomentumEncoder
from vidcsl.objectives.false_negatives import DETECTORS, TREATMENTS, Samples
from vidcsl.objectives.losses import nt_xent
from vidcsl.objectives.queue import KeyQueue
from vidcsl.objectives.supervised import Supervised
from vidcsl.objectives.swav import SwAV
from vidcsl.seeding import numpy_generator

VIDEOS = 64  # length of the training list
DIM = 8
TEMPERATURE = 0.2
PUBLISHED = Norms()
OPTIONS = {
    "adaptive": {"ceiling": 0.3, "start": 0.0, "ramp": 0.0},
    "fnc": {"count": 3, "threshold": 0.1},
    "clusters": {"dim": DIM, "clusters": (4, 2), "epochs": 5, "start": 0.0, "ramp": 0.0},
    "glofnd": {"share": 0.3, "start": 0.0, "learning_rate": 0.4},
}


class TinyEncoder(nn.Module):
    def __init__(self, pixels=3 * 2 * 4 * 4):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 16), nn.ReLU())

    def forward(self, clips):
        return self.net(clips)


def batch(*, videos=6, views=2, classes=2, progress=1.0, seed=3, size=4, frames=2):
    generator = torch.Generator().manual_seed(seed)
    return ClipBatch(
        clips=torch.rand(videos, views, 3, frames, size, size, generator=generator),
        labels=torch.arange(videos) % classes,
        groups=torch.arange(videos) // 2,
        videos=torch.arange(videos) + 40,
        progress=progress,
    )


def rendered(*, videos=12, views=2, frames=4, size=16):
    """Clips of rendered motions, three kinds of them, each video with looks of its own."""
    motions = ("sway", "rise", "spin")
    clips = []
    for video in range(videos):
        looks = draw_source(numpy_generator("looks", video), size=size)
        motion = motions[video % len(motions)]
        for view in range(views):
            generator = numpy_generator("clip", video, view)
            clips.append(
                render(looks, motion=motion, frames=frames, size=size, generator=generator)
            )
    pixels = torch.from_numpy(np.stack(clips)).float().div(255)  # [B * V, T, H, W, 3]
    ids = torch.arange(videos)
    return ClipBatch(
        clips=pixels.permute(0, 4, 1, 2, 3).unflatten(0, (videos, views)),
        labels=ids % len(motions),
        groups=ids,
        videos=ids,
    )


def make_detector(name, world=None):
    options = dict(OPTIONS.get(name, {}))
    if name in ("clusters", "glofnd"):
        options |= {"videos": VIDEOS, "world": world}
    return DETECTORS[name](**options)


def make_treatment(name):
    return TREATMENTS[name](weight=0.3)


def make_method(
    name,
    *,
    detector="none",
    treatment="eliminate",
    encoder=None,
    norms=PUBLISHED,
    world=None,
    queue=16,
    **options,
):
    """A method of any name on a tiny encoder, always with the same weights."""
    torch.manual_seed(0)
    encoder = (encoder or TinyEncoder)()
    width = getattr(encoder, "feature_dim", 16)
    if name == "supervised":
        return Supervised(encoder, feature_dim=width, classes=3, world=world)
    head = projector(in_dim=width, hidden_dim=16, out_dim=DIM, layers=2, norms=norms)
    if name == "swav":
        return SwAV(encoder, head, dim=DIM, prototypes=5, frozen=0.3, world=world)
    predictor = projector(in_dim=DIM, hidden_dim=16, out_dim=DIM, layers=2, norms=norms)
    teacher = MomentumEncoder(encoder, head, momentum=0.9)
    if name == "byol":
        return BYOL(encoder, head, predictor=predictor, teacher=teacher, world=world)
    extra = {
        "moco_v2": {"teacher": teacher, "queue": KeyQueue(length=queue, dim=DIM)},
        "moco_v3": {"teacher": teacher, "predictor": predictor},
    }.get(name, {"teacher": teacher} if options.get("judge") == "momentum" else {})
    return CONTRASTIVE[name](
        encoder,
        head,
        loss=partial(nt_xent, temperature=TEMPERATURE),
        detector=make_detector(detector, world),
        treatment=make_treatment(treatment),
        classes=3,
        world=world,
        **extra,
        **options,
    )


def samples(*, videos=8, views=2, seed=0, labels=None):
    """Rows of `videos` videos with random groups and labels."""
    generator = torch.Generator().manual_seed(seed)
    groups, drawn = torch.randint(3, (2, videos), generator=generator).repeat_interleave(views, 1)
    return Samples(
        torch.arange(videos).repeat_interleave(views),
        groups,
        drawn if labels is None else labels,
        torch.arange(views).repeat(videos),
    )


def cosines(rows, columns=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = nn.functional.normalize(torch.randn(rows + (columns or 0), 5, generator=generator), dim=1)
    return z[:rows] @ (z[rows:] if columns else z).T


def foreign(rows, columns):
    """What SimCLR pushes away: rows of other videos."""
    return ~rows.same(columns, "videos")
