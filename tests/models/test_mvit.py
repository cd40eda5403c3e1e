import pytest

from tests.models.made import check_against_torchvision, slim
from vidcsl.errors import UserError


def test_the_published_network_is_torchvisions():
    check_against_torchvision("mvit_v2_s", size=224, head="head")


def test_sides_that_it_cannot_halve_are_refused():
    with pytest.raises(UserError, match="multiple of 32"):
        slim("mvit_v2_s", FRAME_SIZE=48)
