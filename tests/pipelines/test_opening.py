import pytest
import torch

from vidcsl.config import default_config
from vidcsl.errors import UserError
from vidcsl.methods import Method
from vidcsl.methods.method import MomentumEncoder
from vidcsl.pipelines.context import fitted_weights, load_kept
from vidcsl.pipelines.model import build_encoder


def method(frames, **options):
    cfg = default_config()
    cfg.MODEL.NAME, cfg.DATA.FRAMES, cfg.MODEL.FRAME_SIZE = "video_vit_s", frames, 32
    shape = {"WIDTH": 24, "DEPTH": 1, "POSITIONS": "learned", **options}
    for key, value in shape.items():
        setattr(cfg.MODEL, key, value)
    return Method(build_encoder(cfg)).eval()


def test_a_checkpoint_fits_clips_of_another_length_and_that_is_said():
    made, same, other = method(4), method(4), method(8)
    torch.nn.init.normal_(made.encoder.backbone.pos_embed)
    state = {**made.state_dict(), "projector.0.weight": torch.zeros(2)}
    assert load_kept(same, state, source="a.pt") == []
    clips = torch.rand(2, 3, 8, 32, 32)
    assert torch.equal(same.encoder(clips[:, :, :4]), made.encoder(clips[:, :, :4]))
    (note,) = load_kept(other, state, source="a.pt")
    assert note.startswith("a.pt: positions interpolated from 2 x 2 x 2 to 4 x 2 x 2")
    torch.testing.assert_close(other.encoder(clips), made.encoder(clips))
    with pytest.raises(UserError, match=r"a\.pt, encoder, holds another architecture"):
        load_kept(method(4, DEPTH=2), state, source="a.pt")


def test_a_momentum_encoder_is_fitted_with_its_encoder_and_that_is_said_once():
    def followed(frames):
        made = method(frames)
        made.momentum_encoder = MomentumEncoder(made.encoder, torch.nn.Identity(), momentum=0.9)
        return made

    made, other = followed(4), followed(8)
    weights, notes = fitted_weights(other, made.state_dict())
    (note,) = notes
    assert note.startswith("positions interpolated")
    other.load_state_dict(weights)
    key = "encoder.backbone.pos_embed"
    assert torch.equal(weights[key], weights[f"momentum_encoder.{key}"])
