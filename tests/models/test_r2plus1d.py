import pytest
import torch
from torchvision.models.video import r2plus1d_18 as torchvision_r2plus1d_18

from vidcsl.models import ENCODERS
from vidcsl.models.encoder import MEAN, STD
from vidcsl.models.r2plus1d import r2plus1d_18


def test_full_width_is_torchvisions_network():
    theirs = torchvision_r2plus1d_18(weights=None).eval()
    ours = r2plus1d_18(clip_frames=8, frame_size=32).eval()
    weights = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc")}
    ours.backbone.load_state_dict(weights, strict=True)
    theirs.fc = torch.nn.Identity()
    clips = torch.rand(2, 3, 8, 32, 32)
    normalised = (clips - torch.tensor(MEAN).view(3, 1, 1, 1)) / torch.tensor(STD).view(3, 1, 1, 1)
    torch.testing.assert_close(ours(clips), theirs(normalised), rtol=1e-4, atol=1e-5)


def test_every_encoder_keeps_the_contract_at_any_width():
    for build in ENCODERS.values():
        encoder = build(clip_frames=4, frame_size=24, width=8).eval()
        clips = torch.rand(2, 3, 4, 24, 24, requires_grad=True)
        features = encoder(clips)
        assert features.shape == (2, encoder.feature_dim)
        assert (encoder.clip_frames, encoder.frame_size) == (4, 24)
        (gradient,) = torch.autograd.grad(features.sum(), clips)
        assert gradient.abs().sum() > 0


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
