import pytest
import torch
from torch import nn

from tests.models.made import clips_for, slim
from vidcsl.errors import UserError


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


@pytest.mark.parametrize("size", [(4, 32, 48), (5, 35, 17)])  # the second with margins
def test_tubelets_are_embedded_as_by_a_convolution(size):
    ours = slim("video_vit_s").backbone.patch_embed["proj"]
    theirs = nn.Conv3d(3, 24, (2, 16, 16), stride=(2, 16, 16))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    clips = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    found = []
    for conv in (ours, theirs):
        seen = clips.clone().requires_grad_()
        maps = conv(seen)
        maps.square().mean().backward()
        found.append((maps.detach(), seen.grad, conv.weight.grad, conv.bias.grad))
    torch.testing.assert_close(*found, rtol=3e-6, atol=3e-6)


def test_divided_attention_starts_as_attention_over_space():
    encoder = slim("video_vit_s", ATTENTION="divided", POSITIONS="sine")
    clips = clips_for(encoder)
    before = encoder(clips)
    for block in encoder.backbone.blocks:
        nn.init.normal_(block.temporal_attn.qkv.weight)
    torch.testing.assert_close(encoder(clips), before)


def test_a_tubelet_larger_than_the_published_clip():
    encoder = slim("video_vit_s", FRAME_SIZE=240, TUBELET=[2, 240])
    assert encoder(clips_for(encoder)).shape == (2, 24)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"FRAME_SIZE": 40}, "cannot be cut into tubelets"),
        ({"TUBELET": [2]}, "needs two values"),
        ({"TUBELET": [2, 0]}, "from 1 on"),
        ({"TUBELET": [-2, 16]}, "from 1 on"),
        ({"POSITIONS": "rotary", "HEADS": 6}, "need 6 channels or more, not 4"),
        ({"WIDTH": 25, "HEADS": 2}, "cannot be cut into 2 heads"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        slim("video_vit_s", **options)
