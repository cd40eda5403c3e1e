import pytest
import torch

from tests.robustness.attacks.models import predict, random_clips, sharp
from vidcsl.config import load_config
from vidcsl.errors import UserError
from vidcsl.pipelines.targets import attack_specs, build_attacks
from vidcsl.robustness.attacks import PGD, MomentumPGD
from vidcsl.robustness.targets import Clips
from vidcsl.robustness.threats import THREATS


def config(tmp_path, *overrides: str):
    path = tmp_path / "config.yaml"
    path.write_text("DATA: {FRAMES: 4}\n")
    return load_config(path, overrides)


def test_from_a_config(tmp_path):
    specs = "[pgd/linf, 'mifgsm:steps=3/l2', pgd/l1, pgd/l21, pgd/flicker]"
    cfg = config(tmp_path, "ATTACK.RUNS", specs, "ATTACK.STEPS", "5", "ATTACK.RESTARTS", "2")
    found = {spec.name: spec for spec in attack_specs(cfg)}
    assert found["pgd_linf"].solver == PGD(steps=5, restarts=2)
    assert found["mifgsm_steps=3_l2"].solver == MomentumPGD(steps=3)
    attacks = build_attacks(found["pgd_l1"], cfg)
    assert list(attacks) == ["1", "3", "10", "30", "100"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ATTACK.RUNS", "[pgd/linf, pgd/linf]"], "twice"),
        (["ATTACK.RUNS", "['pgd/linf:frames=first:5']"], "4 frames"),
        (["ATTACK.QUANTISE", "true", "ATTACK.EPS_LINF", "[0.5, 1]"], "eps 0.5/255"),
    ],
)
def test_a_config_that_does_not_fit(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        attack_specs(config(tmp_path, *overrides))


@pytest.mark.parametrize(
    "spec", ["apgd/linf:universal=yes", "pgd/linf:universal=yes,frames=random:1"]
)
def test_universal_deltas_that_cannot_be_fitted_are_refused(tmp_path, spec):
    with pytest.raises(UserError, match="are fitted by pgd"):
        attack_specs(config(tmp_path, "ATTACK.RUNS", f"['{spec}']"))


def test_a_universal_delta_is_fitted_on_the_training_clips(tmp_path):
    cfg = config(tmp_path, "ATTACK.RUNS", "['pgd/linf:universal=cyclic,eps=8']")
    (spec,) = attack_specs(cfg)
    model, clips = sharp(), random_clips(14)
    labels, seeds = predict(model, clips), list(range(14))
    training = Clips(clips[:10], labels[:10], seeds[:10], seeds[:10])
    attacks = build_attacks(spec, cfg, training=lambda: [training])
    found = attacks["8/255"](model, clips[10:], labels[10:], seeds[10:])
    assert not torch.equal(found, clips[10:])


@pytest.mark.parametrize("name", sorted(THREATS))
def test_every_threat_has_budgets_in_the_config(tmp_path, name):
    (spec,) = attack_specs(config(tmp_path, "ATTACK.RUNS", f"[pgd/{name}]"))
    assert len(spec.threats) >= 5
    assert {type(threat) for threat in spec.threats.values()} == {THREATS[name]}
