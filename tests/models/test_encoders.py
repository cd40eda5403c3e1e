"""What holds of every encoder."""

import warnings

import pytest
import torch

from tests.models.made import SLIM, clips_for, randomised, slim
from vidcsl.errors import UserError
from vidcsl.models import ENCODERS
from vidcsl.models.encoder import NORMALISATIONS, cost_of


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
        ("video_vit_s", {"DUAL_NORM": True}, "MODEL.DUAL_NORM"),
    ],
)
def test_options_that_an_encoder_does_not_take(name, options, words):
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
