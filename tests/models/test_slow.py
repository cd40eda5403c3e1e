import torch

from tests.models.made import clips_for, randomised, slim


@torch.no_grad()
def test_only_the_last_two_stages_see_time():
    encoder = randomised(slim("slow_r50"))
    clips = clips_for(encoder, count=1)
    shuffled = clips[:, :, [2, 0, 3, 1]]
    assert not torch.allclose(encoder(clips), encoder(shuffled), rtol=1e-3)
    for stage in (encoder.backbone.layer3, encoder.backbone.layer4):
        for block in stage:
            block.conv1.weight[:, :, [0, 2]] = 0  # the frames before and after
    torch.testing.assert_close(encoder(clips), encoder(shuffled))


@torch.no_grad()
def test_time_is_never_strided():
    encoder = slim("slow_r50")
    maps = encoder.backbone.stem(clips_for(encoder))
    assert maps.shape[2:] == (4, 8, 8)
    assert encoder.tokens(clips_for(encoder)).shape[1] == 4
