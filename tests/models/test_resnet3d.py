import pytest
import torch

from tests.models.made import check_against_torchvision
from vidcsl.models.resnet3d import r2plus1d_18


@pytest.mark.parametrize("name", ["r3d_18", "mc3_18", "r2plus1d_18"])
def test_published_networks_are_torchvisions(name):
    check_against_torchvision(name)


def test_motion_changes_the_features():
    torch.manual_seed(0)
    encoder = r2plus1d_18(clip_frames=8, frame_size=24, width=8).eval()
    clip = torch.rand(1, 3, 8, 24, 24)
    assert not torch.allclose(encoder(clip), encoder(clip.flip(2)), atol=1e-5)


@pytest.mark.parametrize("frames", [4, 8, 16])  # two frames are left in one of the stages
def test_bfloat16_gradients_are_near_float32_and_repeatable(frames):
    torch.manual_seed(0)
    encoder = r2plus1d_18(clip_frames=frames, frame_size=24, width=8).eval()
    clips = torch.rand(8, 3, frames, 24, 24)

    def gradients(enabled):
        # What freed memory holds must not matter: fill some with NaN first.
        litter = [torch.full((250_003,), torch.nan) for _ in range(8)]
        del litter
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            features = encoder(clips)
        features.float().square().sum().backward()
        return {name: p.grad.clone() for name, p in encoder.named_parameters()}

    wanted, first = gradients(False), gradients(True)
    for _ in range(3):
        again = gradients(True)
        assert all(torch.equal(again[name], first[name]) for name in first)
    for name, gradient in first.items():
        error = (gradient - wanted[name]).norm() / wanted[name].norm().clamp(min=1e-6)
        assert error < 0.1, name
