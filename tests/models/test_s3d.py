import torch
import torchvision.models.video as torchvision_video

from tests.models.made import check_against_torchvision, clips_for, randomised
from vidcsl.models import ENCODERS


def test_the_published_network_is_torchvisions():
    check_against_torchvision("s3d", size=224, head="classifier")


def test_maps_of_odd_sides_are_halved_as_torchvision_does():
    theirs, ours = torchvision_video.s3d().features, ENCODERS["s3d"](clip_frames=16, frame_size=112)
    ours.backbone.features.load_state_dict(randomised(theirs).state_dict())
    clips = clips_for(ours, count=1)
    with torch.no_grad():
        wanted = theirs(clips)
        assert wanted.shape[2:] == (2, 3, 3)
        found = ours.eval().backbone.features(clips)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
