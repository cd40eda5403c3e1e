import pytest
import torch

from vidcsl.augment.pipeline import TrainAugmentation
from vidcsl.config import default_config
from vidcsl.errors import UserError
from vidcsl.pipelines.data import build_augmentation
from vidcsl.robustness.corruptions import RandomCorruption, corrupt
from vidcsl.seeding import seed_of


def clips(count):
    return torch.rand(count, 3, 4, 20, 20, generator=torch.Generator().manual_seed(0))


def test_a_clip_is_corrupted_by_its_seed_alone():
    change = RandomCorruption(names=["P/jpeg", "C/contrast"], severities=[1, 2], probability=0.7)
    together = change(clips(12), range(12))
    for i in (7, 0, 3):
        assert torch.equal(change(clips(12)[[i]], [i])[0], together[i])


def test_probability_names_and_severities_are_kept_to():
    change = RandomCorruption(
        names=["P/gaussian_noise", "C/contrast"], severities=[2], probability=0.5
    )
    given = clips(40)
    changed = change(given, range(40))
    seen = []
    for i, (clip, before) in enumerate(zip(changed, given, strict=True)):
        candidates = {
            name: corrupt(before[None], name, severity=2, seeds=[seed_of(i, "corruption")])[0]
            for name in change.names
        }
        hits = [name for name, other in candidates.items() if torch.equal(clip, other)]
        assert hits or torch.equal(clip, before)
        seen += hits[:1] if not torch.equal(clip, before) else ["none"]
    assert 10 <= seen.count("none") <= 32
    assert seen.count("C/contrast") >= 4
    assert seen.count("P/gaussian_noise") >= 4


def test_it_is_the_last_step_of_augmentation():
    frames = torch.randint(0, 256, (2, 2, 3, 4, 32, 32), dtype=torch.uint8)
    sizes, seeds = torch.full((2, 2), 32), torch.tensor([5, 6])
    plain = TrainAugmentation(size=16)(frames, sizes, seeds)
    change = RandomCorruption(names=["C/contrast"], severities=[5], probability=1.0)
    corrupted = TrainAugmentation(size=16, corrupt=change)(frames, sizes, seeds)
    expected = corrupt(plain.flatten(0, 1), "C/contrast", severity=5, seeds=[0] * 4)
    torch.testing.assert_close(corrupted.flatten(0, 1), expected)


def test_a_config_switches_it_on():
    cfg = default_config()
    assert build_augmentation(cfg).corrupt is None
    cfg.AUGMENT.CORRUPTION_PROBABILITY = 0.5
    cfg.AUGMENT.CORRUPTIONS = ["P", "fog"]
    change = build_augmentation(cfg).corrupt
    assert len(change.names) == 19
    assert change.probability == 0.5


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("CORRUPTIONS", ["jepg"], "did you mean 'jpeg'"),
        ("CORRUPTIONS", [], "AUGMENT.CORRUPTIONS"),
        ("CORRUPTION_SEVERITIES", [0, 1], "from 1 to 5"),
        ("CORRUPTION_SEVERITIES", [6], "not \\[6\\]"),
    ],
)
def test_wrong_options_are_refused(key, value, message):
    cfg = default_config()
    cfg.AUGMENT.CORRUPTION_PROBABILITY = 0.5
    cfg.AUGMENT[key] = value
    with pytest.raises(UserError, match=message):
        build_augmentation(cfg)
