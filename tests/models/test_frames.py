import pytest
import torch

from tests.models.made import clips_for, slim
from vidcsl.errors import UserError


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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"IMAGE": "resnet1888"}, "near it"),
        ({"IMAGE": "dla46_c", "FRAME_SIZE": 48}, "takes no frames"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        slim("frames", **options)
