import pytest

from tests.models.made import check_against_torchvision, slim
from vidcsl.errors import UserError


def test_the_published_network_is_torchvisions():
    check_against_torchvision("swin3d_t", head="head")


def test_a_width_that_its_heads_do_not_divide_is_refused():
    with pytest.raises(UserError, match="multiple of its 3 heads"):
        slim("swin3d_t", WIDTH=8)
