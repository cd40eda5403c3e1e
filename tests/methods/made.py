"""Small methods, detectors and batches for the tests."""

import copy
from functools import partial

import numpy as np
import torch
from torch import nn

from vidcsl.data.synthetic import draw_source, render
from vidcsl.methods import METHODS, ClipBatch, ContrastiveMethod
from vidcsl.methods.adversarial import Attacking
from vidcsl.methods.false_negatives import DETECTORS, TREATMENTS, FalseNegatives, Samples
from vidcsl.methods.losses import nt_xent
from vidcsl.methods.method import MomentumEncoder
from vidcsl.methods.moco import KeyQueue
from vidcsl.models.batchnorm import add_auxiliary_batchnorm
from vidcsl.models.encoder import Norms, projector
from vidcsl.robustness.attacks import PGD
from vidcsl.robustness.attacks.training import FreeAttack, TrainingAttack
from vidcsl.robustness.threats import Linf
from vidcsl.seeding import numpy_generator
from vidcsl.teachers.neighbours import Teacher

VIDEOS = 64  # length of the training list
DIM = 8
TEMPERATURE = 0.2
PUBLISHED = Norms()
CONTRASTIVE = [name for name, kind in METHODS.items() if issubclass(kind, ContrastiveMethod)]
ATTACKING = [name for name, kind in METHODS.items() if issubclass(kind, Attacking)]
OPTIONS = {
    "adaptive": {"ceiling": 0.3, "start": 0.0, "ramp": 0.0},
    "fnc": {"nearest": 3, "threshold": 0.1},
    "clusters": {"clusters": (4, 2), "start": 0.0, "ramp": 0.0},
    "memory": {"ceiling": 0.3, "start": 0.0, "ramp": 0.0},
    "glofnd": {"ceiling": 0.3, "start": 0.0, "threshold_lr": 0.4},
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


def make_detector(name, distributed=None):
    detector = DETECTORS.build(
        name, {}, videos=VIDEOS, dim=DIM, epochs=5, distributed=distributed, **OPTIONS.get(name, {})
    )
    if name == "teacher":
        vectors = np.random.default_rng(0).standard_normal((VIDEOS, DIM)).astype(np.float16)
        detector.attach(Teacher("made", vectors / np.linalg.norm(vectors, axis=1, keepdims=True)))
    return detector


def make_treatment(name):
    return TREATMENTS.bind(name, {"WEIGHT": 0.3})


def inner(*, eps=4 / 255, steps=2, **options):
    solver = PGD(steps=steps, stop_when_fooled=False, keep_worst=False)
    return TrainingAttack(Linf(eps), solver, **options)


def free(*, eps=4 / 255, replays=2):
    return FreeAttack(inner(eps=eps), replays=replays)


def make_method(
    name,
    *,
    detector="none",
    treatment="eliminate",
    encoder=None,
    norms=PUBLISHED,
    distributed=None,
    queue=16,
    attack=None,
    aggregate="auto",
    judge="online",
    voters=0,
    **options,
):
    """A method of any name on a tiny encoder, always with the same weights."""
    torch.manual_seed(0)
    kind, encoder = METHODS[name], (encoder or TinyEncoder)()
    width = getattr(encoder, "feature_dim", 16)
    wanted = [*kind.parts, *(["momentum_encoder"] if judge == "momentum" else [])]
    wanted += kind.published_parts if options.get("published") else ()
    parts = {}
    for part in wanted:
        if part == "projector":
            head = projector(in_dim=width, hidden_dim=16, out_dim=DIM, layers=2, norms=norms)
            if len(kind.projector_batchnorm_names) > 1 and norms.hidden:
                add_auxiliary_batchnorm(head, kind.projector_batchnorm_names)
            parts[part] = head
        elif part == "predictor":
            parts[part] = projector(in_dim=DIM, hidden_dim=16, out_dim=DIM, layers=2, norms=norms)
        elif part == "momentum_encoder":
            parts[part] = MomentumEncoder(encoder, parts["projector"], momentum=0.9)
        else:
            parts[part] = KeyQueue(length=queue, dim=DIM) if part == "queue" else shaken(encoder)
    given = {
        "loss": partial(nt_xent, temperature=TEMPERATURE),
        "false_negatives": FalseNegatives(
            detector=make_detector(detector, distributed),
            treatment=make_treatment(treatment),
            aggregate=aggregate,
            judge=judge,
            voters=voters,
        ),
        "attack": attack or inner(),
        "feature_dim": width,
        "dim": DIM,
        "classes": 3,
        "videos": VIDEOS,
        "epochs": 5,
        "stages": 4,
        "prototypes": 5,
        "frozen_epochs": 1.5,
        "clusters": (3, 2),
        **parts,
    }
    return METHODS.build(name, {}, encoder=encoder, distributed=distributed, **given | options)


def shaken(encoder):
    """Another encoder of the same shape."""
    other, generator = copy.deepcopy(encoder), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return other


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
