import pytest
import torch

from vidcsl import builders
from vidcsl.config import default_config
from vidcsl.errors import UserError
from vidcsl.objectives import Method
from vidcsl.stages.opening import _load


def method(frames, **options):
    cfg = default_config()
    cfg.MODEL.NAME, cfg.DATA.FRAMES, cfg.MODEL.FRAME_SIZE = "video_vit_s", frames, 32
    shape = {"WIDTH": 24, "DEPTH": 1, "POSITIONS": "learned", **options}
    for key, value in shape.items():
        setattr(cfg.MODEL, key, value)
    return Method(builders.build_encoder(cfg)).eval()


def test_a_checkpoint_fits_clips_of_another_length_and_that_is_said():
    made, same, other = method(4), method(4), method(8)
    torch.nn.init.normal_(made.encoder.backbone.pos_embed)
    state = {**made.state_dict(), "projector.0.weight": torch.zeros(2)}
    assert _load(same, state, source="a.pt") == []
    clips = torch.rand(2, 3, 8, 32, 32)
    assert torch.equal(same.encoder(clips[:, :, :4]), made.encoder(clips[:, :, :4]))
    (note,) = _load(other, state, source="a.pt")
    assert note.startswith("a.pt: positions interpolated from 2 x 2 x 2 to 4 x 2 x 2")
    torch.testing.assert_close(other.encoder(clips), made.encoder(clips))
    with pytest.raises(UserError, match=r"a\.pt, encoder, holds another architecture"):
        _load(method(4, DEPTH=2), state, source="a.pt")
