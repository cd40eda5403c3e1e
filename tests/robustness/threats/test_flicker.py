import pytest
import torch

from vidcsl.errors import UserError
from vidcsl.robustness.threats import BudgetExceeded, Flicker, roughness, thickness

SEEDS = [5, 6, 7]


def test_flicker_is_one_colour_a_frame_but_for_the_box():
    threat, generator = Flicker(0.3), torch.Generator().manual_seed(0)
    clean = torch.rand(3, 3, 4, 5, 5, dtype=torch.float64, generator=generator)
    mask = threat.mask(clean, SEEDS)
    delta = threat.start(clean, mask, [torch.Generator().manual_seed(seed) for seed in SEEDS])
    assert delta.shape == (3, 3, 4, 1, 1)
    perturbed = threat.perturb(clean, delta, SEEDS)
    free = (perturbed > 0) & (perturbed < 1)
    assert free.any()
    torch.testing.assert_close(
        (perturbed - clean)[free], delta.expand_as(clean)[free], rtol=0, atol=1e-12
    )
    threat.verify(clean, perturbed, mask)
    uneven = perturbed.clone()
    uneven[0, 0, 0, 0, 0] = clean[0, 0, 0, 0, 0]
    with pytest.raises(BudgetExceeded, match="different amounts"):
        threat.verify(clean, uneven, mask)


def test_flicker_verify_accepts_a_frame_that_the_box_holds_whole():
    clean = torch.full((1, 3, 2, 2, 2), 0.9)
    threat, white = Flicker(0.3), torch.ones_like(clean)
    mask = threat.mask(clean, [0])
    risen = threat.perturb(clean, torch.full((1, 3, 2, 1, 1), 0.3), [0])
    assert torch.equal(risen, white)
    threat.verify(clean, white, mask)
    white[0, 0, 0, 0, 0] = 0.95  # not at the edge of the box, so that this is the frame's offset
    with pytest.raises(BudgetExceeded):
        threat.verify(clean, white, mask)


def test_thickness_and_roughness_by_hand():
    delta = torch.tensor([0.1, -0.1, 0.3]).view(1, 1, 3, 1, 1).expand(1, 3, 3, 1, 1)
    torch.testing.assert_close(thickness(delta), torch.tensor([100 * 0.5 / 3]))
    torch.testing.assert_close(roughness(delta), torch.tensor([100 * (0.2 + 0.4) / 2]))
    assert roughness(delta[:, :, :1]).tolist() == [0.0]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_pixel_held_by_the_box_bounds_the_offset_of_its_frame(sign):
    """Held at white it would have risen by 0.2 or more, so others may not rise by 0.1."""
    threat, clean = Flicker(0.3), torch.full((1, 3, 2, 2, 2), 0.5)
    clean[..., 0, 0] = 0.5 + 0.3 * sign
    mask = threat.mask(clean, [0])
    for offset, fine in ((0.25, True), (0.1, False)):
        moved = clean + sign * offset
        moved[..., 0, 0] = 0.5 + 0.5 * sign
        if fine:
            threat.verify(clean, moved, mask)
        else:
            with pytest.raises(BudgetExceeded, match="different amounts"):
                threat.verify(clean, moved, mask)


def test_flicker_needs_whole_frames_of_clips():
    with pytest.raises(UserError, match="not images"):
        Flicker(0.1).mask(torch.rand(2, 3, 5, 5), [0, 1])
    with pytest.raises(UserError, match="whole frames"):
        Flicker(0.1, region="patch:0.1")
