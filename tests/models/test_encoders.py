import warnings

import pytest
import torch
import torchvision.models.video as torchvision_video
from torch import nn

from vidcsl.config import default_config
from vidcsl.errors import UserError
from vidcsl.models import ENCODERS
from vidcsl.models.encoder import NORMALISATIONS, cost_of
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


def test_every_encoder_has_its_option():
    assert set(ENCODERS) == set(SLIM)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_keeps_the_contract(name):
    encoder = randomised(slim(name))
    clips = clips_for(encoder).requires_grad_()
    features = encoder(clips)
    assert features.shape == (2, encoder.feature_dim)
    tokens = encoder.tokens(clips)
    assert tokens.shape[0] == 2
    assert tokens.shape[2] == encoder.feature_dim
    (gradient,) = torch.autograd.grad(features.square().sum(), clips)
    assert gradient.abs().sum() > 0
    # In eval mode a clip's features do not depend on what lies beside it.
    torch.testing.assert_close(encoder(clips[1:]), features[1:], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["r3d_18", "mc3_18", "s3d", "mvit_v2_s", "swin3d_t", "r2plus1d_18"]
)
def test_published_networks_are_torchvisions(name):
    theirs = randomised(getattr(torchvision_video, name)())
    size = 224 if name in ("s3d", "mvit_v2_s") else 32
    ours = ENCODERS[name](clip_frames=16, frame_size=size).eval()
    weights = {
        key: value
        for key, value in theirs.state_dict().items()
        if key.split(".")[0] not in ("fc", "head", "classifier")
    }
    ours.backbone.load_state_dict(weights, strict=True)
    head = {"s3d": "classifier"}.get(name, "fc" if hasattr(theirs, "fc") else "head")
    setattr(theirs, head, nn.Identity())
    clips = clips_for(ours, count=1)
    mean, std = (torch.tensor(each).view(3, 1, 1, 1) for each in NORMALISATIONS[ours.normalisation])
    with torch.no_grad():
        wanted = theirs((clips - mean) / std)
        assert wanted.std() > 0.01
        torch.testing.assert_close(ours(clips), wanted, rtol=1e-3, atol=1e-4)


def test_maps_of_odd_sides_are_halved_as_torchvision_does():
    theirs, ours = torchvision_video.s3d().features, ENCODERS["s3d"](clip_frames=16, frame_size=112)
    ours.backbone.features.load_state_dict(randomised(theirs).state_dict())
    clips = clips_for(ours, count=1)
    with torch.no_grad():
        wanted = theirs(clips)
        assert wanted.shape[2:] == (2, 3, 3)
        found = ours.eval().backbone.features(clips)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("attention", ["joint", "divided"])
@pytest.mark.parametrize("positions", ["learned", "sine", "rotary"])
@pytest.mark.parametrize("pooling", ["mean", "tokens", "class"])
def test_video_transformers_of_every_kind(attention, positions, pooling):
    encoder = slim("video_vit_s", ATTENTION=attention, POSITIONS=positions, POOLING=pooling)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    encoder = encoder.double()  # what positions change of so small a network is little
    clips = clips_for(encoder).double()
    features = encoder(clips)
    assert features.shape == (2, 24)
    # Positions are seen: the same patches elsewhere, or at another time, are another clip.
    assert not torch.allclose(features, encoder(clips.flip(2)), rtol=0, atol=1e-8)
    assert not torch.allclose(features, encoder(clips.roll(16, dims=4)), rtol=0, atol=1e-8)
    # Another length and size go through too, their positions interpolated.
    longer = torch.rand(1, 3, 8, 48, 48).double()
    assert encoder(longer).shape == (1, 24)
    assert encoder.tokens(longer).shape[1] == 4 * 9 + (pooling == "class")


def test_divided_attention_starts_as_attention_over_space():
    encoder = slim("video_vit_s", ATTENTION="divided", POSITIONS="sine")
    clips = clips_for(encoder)
    before = encoder(clips)
    for block in encoder.backbone.blocks:
        nn.init.normal_(block.temporal_attn.qkv.weight)
    torch.testing.assert_close(encoder(clips), before)


def test_frames_see_their_order_only_through_a_transformer():
    clips = clips_for(slim("frames"))
    for temporal, sees in (("mean", False), ("transformer", True)):
        encoder = slim("frames", TEMPORAL=temporal)
        same = torch.allclose(encoder(clips), encoder(clips.flip(2)), rtol=1e-4, atol=1e-5)
        assert same is not sees


def test_features_of_a_width_that_heads_of_64_do_not_divide():
    encoder = slim("frames", IMAGE="regnetx_002", TEMPORAL="transformer")
    assert encoder(clips_for(encoder)).shape == (2, encoder.feature_dim)
    assert encoder.feature_dim == 368


def test_a_tubelet_larger_than_the_published_clip():
    encoder = slim("video_vit_s", FRAME_SIZE=240, TUBELET=[2, 240])
    assert encoder(clips_for(encoder)).shape == (2, 24)


def test_published_costs():
    # Parameters and multiply-adds of torchvision's documentation, without the classifier's.
    cost = cost_of(ENCODERS["r3d_18"](clip_frames=16, frame_size=112))
    assert cost.parameters == 33_371_472 - (512 * 400 + 400)
    assert cost.flops == pytest.approx(40.7e9, rel=0.01)
    tiny = slim("video_vit_s")
    by_hand = 2 * (2 * (8 * 8 * 24)) + 8 * 24 * (3 * 2 * 256) + 2 * 8 * 12 * 24 * 24
    assert cost_of(tiny).flops == pytest.approx(by_hand, rel=0.05)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("s3d", {"DEPTH": 2}, "MODEL.NAME s3d takes no MODEL.DEPTH"),
        ("r3d_18", {"POSITIONS": "rotary"}, "MODEL.POSITIONS"),
        ("swin3d_t", {"WIDTH": 8}, "multiple of its 3 heads"),
        ("mvit_v2_s", {"FRAME_SIZE": 48}, "multiple of 32"),
        ("video_vit_s", {"FRAME_SIZE": 40}, "cannot be cut into tubelets"),
        ("video_vit_s", {"TUBELET": [2]}, "needs two values"),
        ("video_vit_s", {"TUBELET": [2, 0]}, "from 1 on"),
        ("video_vit_s", {"TUBELET": [-2, 16]}, "from 1 on"),
        ("video_vit_s", {"POSITIONS": "rotary", "HEADS": 6}, "need 6 channels or more, not 4"),
        ("video_vit_s", {"WIDTH": 25, "HEADS": 2}, "cannot be cut into 2 heads"),
        ("frames", {"IMAGE": "resnet1888"}, "near it"),
        ("frames", {"IMAGE": "dla46_c", "FRAME_SIZE": 48}, "takes no frames"),
        ("video_vit_s", {"DUAL_NORM": True}, "MODEL.DUAL_NORM"),
    ],
)
def test_wrong_options_are_refused(name, options, words):
    with pytest.raises(UserError, match=words):
        slim(name, **options)


def test_normalisation_is_chosen_by_name():
    encoder, plain = slim("r3d_18"), slim("r3d_18", NORMALISE="none")
    clips = clips_for(encoder)
    assert torch.equal(plain.normalised(clips), clips)
    mean, std = (torch.tensor(each).view(3, 1, 1, 1) for each in NORMALISATIONS["kinetics"])
    torch.testing.assert_close(encoder.normalised(clips), (clips - mean) / std)


def test_chunks_pass_through_every_encoder():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = slim("video_vit_s").train()
        clips = clips_for(encoder, count=5)
        whole = encoder(clips)
        encoder.chunk = 2
        torch.testing.assert_close(encoder(clips), whole, rtol=1e-4, atol=1e-5)
