import pytest
import torch

from tests.robustness.attacks.models import predict, random_clips, sharp
from vidcsl import builders
from vidcsl.config import load_config
from vidcsl.errors import UserError
from vidcsl.robustness.attacks import GOALS, PGD
from vidcsl.robustness.attacks.universal import UniversalAttack, fit_universal
from vidcsl.robustness.clips import Clips
from vidcsl.robustness.threats import L2, Flicker, Linf, Universal, to_levels


def some(first: int, last: int) -> Clips:
    clips = random_clips(40)[first:last]
    labels, seeds = predict(sharp(), clips), list(range(first, last))
    return Clips(clips, labels, seeds, seeds)


def attack_of(threat: Universal, **options) -> UniversalAttack:
    training = lambda: [some(0, 10), some(10, 20)]  # noqa: E731
    return UniversalAttack(training, threat, GOALS["cross_entropy"], PGD(steps=15), **options)


@pytest.mark.parametrize(
    "threat",
    [
        Universal(Linf(0.06)),
        Universal(L2(1.2)),
        Universal(Linf(0.06), cyclic=True),
        Universal(Flicker(0.15)),
    ],
    ids=str,
)
def test_a_delta_fitted_on_some_clips_fools_others_more_than_noise_does(threat):
    model, test = sharp(), some(20, 40)
    found = attack_of(threat)(model, test.clips, test.labels, test.seeds)
    zero = threat.zero(test.clips)
    mask = torch.ones_like(zero, dtype=torch.bool)
    noise = threat.start(test.clips, mask, [torch.Generator().manual_seed(0)])
    noisy = threat.perturb(test.clips, noise, test.seeds)
    right = [int((predict(model, clips) == test.labels).sum()) for clips in (noisy, found)]
    assert right[1] <= right[0] - 3


def test_it_is_fitted_once_for_a_model_and_the_same_for_every_batch():
    model, test, made = sharp(), some(20, 40), attack_of(Universal(Linf(0.03)))
    looks = []
    model.register_forward_hook(lambda *_: looks.append(1))
    whole = made(model, test.clips, test.labels, test.seeds)
    fitted = len(looks)
    part = made(model, test.clips[5:9], test.labels[5:9], test.seeds[5:9])
    assert fitted > 0
    assert len(looks) == fitted
    assert torch.equal(part, whole[5:9])


def test_quantised():
    test, made = some(20, 30), attack_of(Universal(Linf(3.5 / 255)), quantise=True)
    found = made(sharp(), test.clips, test.labels, test.seeds)
    assert torch.equal(found, to_levels(found))
    assert ((found - to_levels(test.clips)).abs() <= 3 / 255 + 1e-9).all()


def test_nothing_to_fit_on():
    options = {"goal": GOALS["cross_entropy"], "solver": PGD(steps=1)}
    with pytest.raises(UserError, match="there are none"):
        fit_universal(sharp(), [], threat=Universal(Linf(0.1)), **options)


@pytest.mark.parametrize(
    "words",
    ["apgd/linf:universal=yes", "pgd/linf:universal=yes,frames=random:1"],
)
def test_what_a_config_cannot_fit(tmp_path, words):
    path = tmp_path / "config.yaml"
    path.write_text("DATA: {FRAMES: 4}\n")
    with pytest.raises(UserError, match="are fitted by pgd"):
        builders.build_attack_runs(load_config(path, ["ATTACK.RUNS", f"['{words}']"]))
    cfg = load_config(path, ["ATTACK.RUNS", "['pgd/linf:universal=cyclic,eps=8']"])
    (run,) = builders.build_attack_runs(cfg)
    attacks = builders.build_attacks(run, cfg, training=lambda: [some(0, 10)])
    test = some(20, 24)
    found = attacks["8/255"](sharp(), test.clips, test.labels, test.seeds)
    assert not torch.equal(found, test.clips)
