"""Networks of planar convolutions are what they are with torch's own 3-D ones."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torchvision.models.video import resnet as torchvision_resnet

from tests.models.made import clips_for, randomised, slim
from vidcsl.models.batchnorm import add_auxiliary_batchnorm
from vidcsl.models.planar import PlanarConv3d, planar
from vidcsl.models.resnet3d import r2plus1d_18

EXACT = {"rtol": 1e-9, "atol": 1e-9}  # float64; BatchNorm over few values magnifies rounding


def plain(network):
    """A copy in which torch computes the convolutions, contiguous as they are published."""
    copy = deepcopy(network).to(memory_format=torch.contiguous_format)
    for each in copy.modules():
        if isinstance(each, nn.Conv3d):
            each.__class__ = nn.Conv3d
    return copy


def step(network, clips):
    """Features, gradients at clips and weights, and buffers after a pass in training mode."""
    clips = clips.clone().requires_grad_()
    features = network.train()(clips)
    features.square().sum().backward()
    weights = {name: parameter.grad for name, parameter in network.named_parameters()}
    return features.detach(), clips.grad, weights, dict(network.named_buffers())


def normalised_clips(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


# Two frames in, odd sides, one frame left in later stages, and clips of one frame.
@pytest.mark.parametrize("shape", [(2, 3, 2, 24, 24), (3, 3, 5, 33, 35), (2, 3, 1, 40, 32)])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("r2plus1d_18", {}),
        ("r2plus1d_18", {"WIDTH": 7, "DEPTH": 2}),
        ("r2plus1d_34_mmaction2", {}),
        ("s3d", {}),
        ("slow_r50", {}),
    ],
)
def test_a_training_step_is_that_of_3d_convolutions(name, options, shape):
    ours = randomised(slim(name, **options)).backbone.double()
    assert any(isinstance(each, PlanarConv3d) for each in ours.modules())
    clips = normalised_clips(*shape)
    if name == "s3d":  # it halves each side five times, and BatchNorm needs two values
        clips = torch.nn.functional.interpolate(clips, (shape[2], 2 * shape[3], 2 * shape[4]))
    wanted = step(plain(ours), clips)
    torch.testing.assert_close(step(ours, clips), wanted, **EXACT)


def test_a_training_step_is_torchvisions():
    blocks = [torchvision_resnet.Conv2Plus1D] * 4
    theirs = torchvision_resnet.VideoResNet(
        torchvision_resnet.BasicBlock, blocks, [1] * 4, torchvision_resnet.R2Plus1dStem
    )
    theirs.fc = nn.Identity()
    ours = r2plus1d_18(clip_frames=4, frame_size=16, depth=1).backbone
    ours.load_state_dict(randomised(theirs).state_dict(), strict=True)
    for each in (ours, theirs):  # as they are, but 95 % of the weights: a second instead of twenty
        each.layer3 = each.layer4 = nn.Identity()
    clips = normalised_clips(2, 3, 3, 20, 18)
    wanted = step(theirs.double(), clips)
    torch.testing.assert_close(step(ours.double(), clips), wanted, **EXACT)


def test_maps_between_layers_are_5d_and_lie_channels_last():
    """What hooks see is what they saw, and no layer has to copy."""
    encoder, seen = slim("r2plus1d_18"), []
    for each in encoder.backbone.modules():
        if isinstance(each, nn.Conv3d | nn.BatchNorm3d | nn.ReLU):
            each.register_forward_hook(lambda _, inputs, out: seen.extend((*inputs, out)))
    encoder(clips_for(encoder))
    assert all(maps.is_contiguous(memory_format=torch.channels_last_3d) for maps in seen)


def test_weights_and_their_gradients_keep_shape_and_layout():
    encoder = slim("r2plus1d_18").train()
    encoder(clips_for(encoder)).sum().backward()
    convs = [each for each in encoder.modules() if isinstance(each, nn.Conv3d)]
    assert all(each.weight.ndim == 5 for each in convs)
    for each in convs:
        assert each.weight.grad.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("options", [{"stride": 2}, {"stride": (2, 1, 1)}, {}])
def test_gradients_at_maps_lie_channels_last(options):
    conv = planar(nn.Conv3d(2, 3, 1, **options))
    clips = normalised_clips(2, 2, 4, 6, 6, dtype=torch.float32)
    clips = clips.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    out = conv(clips)
    (gradient,) = torch.autograd.grad(out, clips, torch.ones_like(out))
    assert gradient.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": (1, 3, 3), "stride": (1, 2, 2), "padding": (0, 1, 1)},
        {"kernel_size": (3, 1, 1), "stride": (2, 1, 1), "padding": (1, 0, 0)},
        {"kernel_size": 1, "stride": 2, "bias": False},
    ],
    ids=["space", "time", "point"],
)
def test_it_can_be_differentiated_twice(options):
    conv = planar(nn.Conv3d(2, 3, **options)).double()
    clips = normalised_clips(1, 2, 3, 3, 2).requires_grad_()
    assert isinstance(conv, PlanarConv3d)
    assert torch.autograd.gradcheck(conv, clips)
    assert torch.autograd.gradgradcheck(conv, clips)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": (1, 3, 3), "padding": 1},  # pads time, too
        {"kernel_size": (3, 1, 1), "stride": 2},  # leaves places out
        {"kernel_size": (3, 1, 1), "dilation": (2, 1, 1)},
        {"kernel_size": (1, 3, 3), "groups": 2},
        {"kernel_size": (1, 3, 3), "padding": (0, 1, 1), "padding_mode": "replicate"},
    ],
)
def test_what_is_no_2d_convolution_stays(options):
    conv = nn.Conv3d(2, 4, **options)
    clips = normalised_clips(1, 2, 5, 6, 6, dtype=torch.float32)
    wanted = conv(clips)
    assert type(planar(conv)) is nn.Conv3d
    torch.testing.assert_close(conv(clips), wanted)


@pytest.mark.parametrize("shape", [(2, 3, 1, 4, 4), (1, 3, 2, 4, 4), (1, 3, 1, 4, 4)])
@pytest.mark.parametrize("train", [True, False])
def test_one_clip_or_one_frame_has_the_gradient_of_3d_convolutions(train, shape):
    """With odd strides of such a dimension torch's BatchNorm gives a wrong one."""
    layers = nn.Sequential(nn.Conv3d(3, 4, (3, 1, 1), padding=(1, 0, 0)), nn.BatchNorm3d(4))
    ours, gradient = planar(layers).double().train(train), normalised_clips(*shape)[:, [0, 1, 2, 0]]

    def answer(network):
        clips = normalised_clips(*shape).requires_grad_()
        out = network(clips)
        out.backward(gradient)  # not channels last
        return out.detach(), clips.grad

    torch.testing.assert_close(answer(ours), answer(plain(ours)), **EXACT)
    maps = ours[0](normalised_clips(*shape))
    wanted = torch.empty(maps.shape).contiguous(memory_format=torch.channels_last_3d)
    assert maps.stride() == torch.empty_like(wanted, memory_format=torch.channels_last_3d).stride()


@pytest.mark.parametrize("name", ["mc3_18", "r3d_18"])
def test_a_network_with_other_convolutions_too_keeps_all_of_them(name):
    assert not any(isinstance(each, PlanarConv3d) for each in slim(name).modules())


def test_auxiliary_norms_come_beside_it():
    ours = randomised(add_auxiliary_batchnorm(slim("r2plus1d_18"))).backbone.double()
    clips = normalised_clips(2, 3, 4, 24, 24)
    wanted = step(plain(ours), clips)[:2]
    torch.testing.assert_close(step(ours, clips)[:2], wanted, **EXACT)
