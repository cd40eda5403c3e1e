"""Encoders small enough for tests, and clips for them."""

import torch
import torchvision.models.video as torchvision_video
from torch import nn

from vidcsl.config import default_config
from vidcsl.models import ENCODERS
from vidcsl.models.encoder import NORMALISATIONS
from vidcsl.pipelines.model import build_encoder

# The smallest network of each family: clips (frames, size) and its slim options.
SLIM = {
    **dict.fromkeys(("r2plus1d_18", "r2plus1d_34"), (4, 24, {"WIDTH": 4, "DEPTH": 1})),
    "r2plus1d_34_mmaction2": (4, 32, {"WIDTH": 4, "DEPTH": 1}),
    **dict.fromkeys(("r3d_18", "r3d_18_tclr", "mc3_18"), (4, 24, {"WIDTH": 4, "DEPTH": 1})),
    "s3d": (4, 32, {"WIDTH": 4}),
    "slow_r50": (4, 32, {"WIDTH": 4, "DEPTH": 1}),
    "mvit_v2_s": (4, 32, {"WIDTH": 8, "DEPTH": 1}),
    **dict.fromkeys(("swin3d_t", "swin3d_s"), (4, 32, {"WIDTH": 6, "DEPTH": 1})),
    "swin3d_b": (4, 32, {"WIDTH": 8, "DEPTH": 1}),
    **dict.fromkeys(
        ("video_vit_s", "video_vit_b", "video_vit_l"), (4, 32, {"WIDTH": 24, "DEPTH": 2})
    ),
    "frames": (4, 32, {"IMAGE": "resnet10t"}),
}


def slim(name, **options):
    frames, size, shape = SLIM[name]
    cfg = default_config()
    cfg.MODEL.NAME, cfg.DATA.FRAMES, cfg.MODEL.FRAME_SIZE = name, frames, size
    for key, value in {**shape, **options}.items():
        setattr(cfg.MODEL, key, value)
    return build_encoder(cfg).eval()


def clips_for(encoder, count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = encoder.frame_size
    return torch.rand(count, 3, encoder.clip_frames, size, size, generator=generator)


@torch.no_grad()
def randomised(module):
    """Random weights and statistics, so that nothing is right by being zero or one."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            small = torch.randn(tensor.shape, generator=generator) * 0.05
            scale = tensor.ndim == 1 and name.endswith(("weight", "running_var"))
            tensor.copy_(small.abs() + 0.5 if scale else small)
    return module.eval()


@torch.no_grad()
def check_against_torchvision(name, *, size=32, head="fc"):
    """The published network gives torchvision's features with torchvision's weights."""
    theirs = randomised(getattr(torchvision_video, name)())
    ours = ENCODERS[name](clip_frames=16, frame_size=size).eval()
    weights = {
        key: value for key, value in theirs.state_dict().items() if key.split(".")[0] != head
    }
    ours.backbone.load_state_dict(weights, strict=True)
    setattr(theirs, head, nn.Identity())
    clips = clips_for(ours, count=1)
    mean, std = (torch.tensor(each).view(3, 1, 1, 1) for each in NORMALISATIONS[ours.normalisation])
    wanted = theirs((clips - mean) / std)
    assert wanted.std() > 0.01
    torch.testing.assert_close(ours(clips), wanted, rtol=1e-3, atol=1e-4)
