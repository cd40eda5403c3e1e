"""Small methods, detectors and batches for the tests."""

import copy
from functools import partial

import numpy as np
import torch
from torch import nn

from vidcsl.data.synthetic import draw_source, render
from vidcsl.methods import CONTRASTIVE, METHODS, ClipBatch
from vidcsl.methods.adversarial import ADVERSARIAL_CONTRASTIVE, ADVERSARIAL_SUPERVISED
from vidcsl.methods.adversarial.advcl import PseudoLabels
from vidcsl.methods.adversarial.deacl import DeACL
from vidcsl.methods.byol import BYOL
from vidcsl.methods.false_negatives import DETECTORS, TREATMENTS, Samples
from vidcsl.methods.losses import nt_xent
from vidcsl.methods.method import MomentumEncoder
from vidcsl.methods.moco import KeyQueue
from vidcsl.methods.supervised import Supervised
from vidcsl.methods.swav import SwAV
from vidcsl.models.encoder import Norms, projector
from vidcsl.models.norm_sets import with_norm_sets
from vidcsl.robustness.attacks import PGD
from vidcsl.robustness.attacks.inner import FreeAttack, InnerAttack
from vidcsl.robustness.threats import Linf
from vidcsl.seeding import numpy_generator
from vidcsl.teachers.neighbours import Teacher

VIDEOS = 64  # length of the training list
DIM = 8
TEMPERATURE = 0.2
PUBLISHED = Norms()
OPTIONS = {
    "adaptive": {"ceiling": 0.3, "start": 0.0, "ramp": 0.0},
    "fnc": {"count": 3, "threshold": 0.1},
    "clusters": {"dim": DIM, "clusters": (4, 2), "epochs": 5, "start": 0.0, "ramp": 0.0},
    "memory": {"dim": DIM, "ceiling": 0.3, "start": 0.0, "ramp": 0.0},
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


def make_detector(name, distributed=None):
    options = dict(OPTIONS.get(name, {}))
    if name in ("clusters", "glofnd", "memory"):
        options |= {"videos": VIDEOS, "distributed": distributed}
    detector = DETECTORS[name](**options)
    if name == "teacher":
        vectors = np.random.default_rng(0).standard_normal((VIDEOS, DIM)).astype(np.float16)
        detector.attach(Teacher("made", vectors / np.linalg.norm(vectors, axis=1, keepdims=True)))
    return detector


def make_treatment(name):
    return TREATMENTS[name](weight=0.3)


def inner(*, eps=4 / 255, steps=2, **options):
    solver = PGD(steps=steps, stop_when_fooled=False, keep_worst=False)
    return InnerAttack(Linf(eps), solver, **options)


def free(*, eps=4 / 255, replays=2):
    return FreeAttack(inner(eps=eps), replays=replays)


def _adversarial(name, distributed, attack, width):
    """What an adversarial method takes beside what others take."""
    if name == "advcl":
        labels = PseudoLabels(
            videos=VIDEOS, dim=DIM, clusters=(3, 2), epochs=5, distributed=distributed
        )
        return {"attack": attack, "feature_dim": width, "pseudo_labels": labels}
    return {"attack": attack, **({"stages": 4} if name == "dynacl" else {})}


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
    **options,
):
    """A method of any name on a tiny encoder, always with the same weights."""
    torch.manual_seed(0)
    attack = attack or inner()
    encoder = (encoder or TinyEncoder)()
    width = getattr(encoder, "feature_dim", 16)
    if name == "supervised":
        return Supervised(encoder, feature_dim=width, classes=3, distributed=distributed)
    if name in ADVERSARIAL_SUPERVISED:
        options |= _adversarial(name, distributed, attack, width)
        return METHODS[name](
            encoder, feature_dim=width, classes=3, distributed=distributed, **options
        )
    if name == "deacl":
        return DeACL(encoder, teacher=shaken(encoder), attack=attack, distributed=distributed)
    head = projector(in_dim=width, hidden_dim=16, out_dim=DIM, layers=2, norms=norms)
    sets = METHODS[name].projector_sets
    if len(sets) > 1 and norms.hidden:
        with_norm_sets(head, sets)
    if name in ADVERSARIAL_CONTRASTIVE:
        options |= _adversarial(name, distributed, attack, width)
    if name == "swav":
        return SwAV(encoder, head, dim=DIM, prototypes=5, frozen=0.3, distributed=distributed)
    predictor = projector(in_dim=DIM, hidden_dim=16, out_dim=DIM, layers=2, norms=norms)
    teacher = MomentumEncoder(encoder, head, momentum=0.9)
    if name == "byol":
        return BYOL(encoder, head, predictor=predictor, teacher=teacher, distributed=distributed)
    extra = {
        "moco_v2": {"teacher": teacher, "queue": KeyQueue(length=queue, dim=DIM)},
        "moco_v3": {"teacher": teacher, "predictor": predictor},
    }.get(name, {"teacher": teacher} if options.get("judge") == "momentum" else {})
    return CONTRASTIVE[name](
        encoder,
        head,
        loss=partial(nt_xent, temperature=TEMPERATURE),
        detector=make_detector(detector, distributed),
        treatment=make_treatment(treatment),
        classes=3,
        distributed=distributed,
        **extra,
        **options,
    )


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
