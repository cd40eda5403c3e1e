"""CoCLR's S3D on RGB frames: its InfoNCE, UberNCE and CoCLR models, and their classifiers."""

import re

from vidcsl.models.pretrained.layout import Layout, norm_eps

_START = r"(?:module\.)?(?:encoder_q\.0|backbone)\."

# Modules of its blocks, in order, as places in torchvision's `features`.
_PLACES = {
    "block1.0": 0,
    "block2.1": 2,
    "block2.2": 3,
    "block3.1": 5,
    "block3.2": 6,
    **{f"block4.{n}": 7 + n for n in range(1, 6)},
    "block5.1": 14,
    "block5.2": 15,
}
_INNER = {"conv": "0", "bn": "1"}
_SPLIT = {"conv1": "0.0", "bn1": "0.1", "conv2": "1.0", "bn2": "1.1"}
_MODULES = _INNER | _SPLIT


def _renames() -> tuple[tuple[str, str], ...]:
    """A module by itself, or within the branches of an Inception block."""
    found = []
    for theirs, place in _PLACES.items():
        start, ours = _START + re.escape(theirs) + r"\.", f"features.{place}"
        for name, number in _MODULES.items():
            found.append((rf"{start}{name}\.(.+)", rf"{ours}.{number}.\1"))
            found.append((rf"{start}branch0\.0\.{name}\.(.+)", rf"{ours}.branch0.{number}.\1"))
            inner = rf"{start}branch([123])\.(\d)\.{name}\.(.+)"
            found.append((inner, rf"{ours}.branch\1.\2.{number}.\3"))
    return tuple(found)


LAYOUT = Layout(
    meaning="CoCLR's S3D on RGB frames, pretraining (`encoder_q`) or its classifier",
    encoders=("s3d",),
    containers=("state_dict",),
    left_out=(
        (_START + r"(Conv|Mixed)_\d.+", "second names of the same tensors"),
        (r"(module\.)?encoder_k\..+", "the momentum encoder"),
        (r"(module\.)?sampler\..+", "the encoder of the other view"),
        (r"(module\.)?encoder_q\.[1-9]\..+", "the projector"),
        (r"(module\.)?queue.*", "the queue"),
        (r"(module\.)?(final_fc|final_bn)\..+", "the classifier"),
    ),
    renames=_renames(),
    changes=(norm_eps(r".+", theirs=1e-5, ours=1e-3),),
    normalisation="imagenet",
    note="If your frames were stored by OpenCV without a swap, they were BGR: MODEL.CHANNELS bgr",
)
