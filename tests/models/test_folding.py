import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vidcsl.distributed import DistributedContext
from vidcsl.models.batchnorm import add_auxiliary_batchnorm, batchnorm_in_use, folded
from vidcsl.models.resnet3d import r2plus1d_18, r2plus1d_34_mmaction2, r3d_18
from vidcsl.models.s3d import s3d
from vidcsl.models.slow import slow_r50
from vidcsl.training.parallel import synchronise_batchnorm

TWO = DistributedContext(rank=0, size=2, device=torch.device("cpu"))


def trained(module):
    """With statistics and weights of BatchNorms that are told apart."""
    torch.manual_seed(0)
    for norm in filter(lambda each: isinstance(each, _BatchNorm), module.modules()):
        nn.init.normal_(norm.running_mean, std=0.2)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)
    return module.eval()


def answer(module, clips):
    """Features and their gradient at the clips."""
    clips = clips.clone().requires_grad_(True)
    features = module(clips)
    return features.detach(), torch.autograd.grad(features.square().sum(), clips)[0]


def compiled(module):
    module.forward = torch.compile(module.forward, backend="eager")
    return module


def norms_left(module):
    return sum(isinstance(each, _BatchNorm) for each in module.modules())


def test_a_module_that_stands_twice_in_a_chain_is_not_overlooked():
    act = nn.ReLU()
    chain = [nn.Conv2d(3, 4, 3), act, nn.Conv2d(4, 4, 3), act, nn.BatchNorm2d(4)]
    network, pictures = trained(nn.Sequential(*chain)), torch.rand(1, 3, 8, 8)
    wanted = network(pictures)
    with folded(network):
        torch.testing.assert_close(network(pictures), wanted)


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (lambda: r2plus1d_18(clip_frames=4, frame_size=24, width=4, depth=1), 0),
        (lambda: r2plus1d_34_mmaction2(clip_frames=4, frame_size=24, width=4, depth=1), 0),
        (lambda: r3d_18(clip_frames=4, frame_size=24, width=4, depth=1), 0),
        (lambda: s3d(clip_frames=8, frame_size=32, width=8), 0),
        (lambda: slow_r50(clip_frames=4, frame_size=32, width=4, depth=1), 12),
        (
            lambda: synchronise_batchnorm(
                r3d_18(clip_frames=4, frame_size=24, width=4, depth=1), TWO
            ),
            0,
        ),
    ],
    ids=["r2plus1d", "mmaction2", "r3d", "s3d", "slow", "synchronised"],
)
def test_answers_differ_by_rounding_and_all_is_as_before(make, left):
    encoder = trained(make()).double()
    parts = {name: id(each) for name, each in encoder.named_modules()}
    state = {name: id(each) for name, each in encoder.state_dict(keep_vars=True).items()}
    clips = torch.rand(2, 3, encoder.clip_frames, *[encoder.frame_size] * 2).double()
    wanted = answer(encoder, clips)
    with folded(encoder):
        assert norms_left(encoder) == left
        torch.testing.assert_close(answer(encoder, clips), wanted)
    assert {name: id(each) for name, each in encoder.named_modules()} == parts
    assert {name: id(t) for name, t in encoder.state_dict(keep_vars=True).items()} == state
    assert all(torch.equal(*both) for both in zip(answer(encoder, clips), wanted, strict=True))


def test_of_several_sets_the_one_in_use():
    encoder = r3d_18(clip_frames=4, frame_size=24, width=4, depth=1)
    encoder = trained(add_auxiliary_batchnorm(encoder)).double()
    clips = torch.rand(2, 3, 4, 24, 24).double()
    clean = answer(encoder, clips)
    with batchnorm_in_use(encoder, "adversarial"):
        wanted = answer(encoder, clips)
        with folded(encoder):
            torch.testing.assert_close(answer(encoder, clips), wanted)
    assert not torch.allclose(wanted[0], clean[0])
    torch.testing.assert_close(answer(encoder, clips), clean)


def test_an_activation_within_a_norm_stays():
    """As timm's image models have it."""
    module = trained(nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4))).double()
    images = torch.rand(2, 3, 6, 6).double()
    wanted = answer(module, images)
    assert (wanted[0] == 0).any()
    with folded(module):
        assert norms_left(module) == 0
        torch.testing.assert_close(answer(module, images), wanted)


class Skipping(nn.Sequential):
    """No chain: its convolution's maps go past the BatchNorm too."""

    def forward(self, maps):
        maps = self[0](maps)
        return maps + self[1](maps)


@pytest.mark.parametrize(
    "make",
    [
        lambda conv, norm: Skipping(conv, norm).eval(),
        lambda _, norm: nn.Sequential(nn.ConvTranspose3d(3, 4, 1), norm).eval(),
        lambda conv, _: nn.Sequential(conv, nn.BatchNorm3d(4, track_running_stats=False)).eval(),
        lambda conv, norm: nn.Sequential(conv, norm).train(),
        lambda conv, norm: nn.Sequential(conv, nn.ReLU(), norm).eval(),
        lambda conv, norm: compiled(nn.Sequential(conv, norm).eval()),
    ],
    ids=["skips", "transposed", "batch statistics", "training", "not adjacent", "compiled"],
)
def test_what_cannot_be_folded_is_left_alone(make):
    module = make(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4))
    with folded(nn.Sequential(nn.Identity(), module)):
        assert norms_left(module) == 1
        module(torch.rand(2, 3, 4, 6, 6))


def test_an_error_inside_leaves_nothing_behind():
    module = trained(nn.Sequential(nn.Conv3d(3, 4, 1, bias=False), nn.BatchNorm3d(4)))
    norm, weight = module[1], module[0].weight
    with pytest.raises(RuntimeError), folded(module):
        raise RuntimeError
    assert module[1] is norm
    assert module[0].weight is weight
    assert module[0].bias is None
