from pathlib import Path

import pytest

from vidcsl.errors import UserError
from vidcsl.robustness.attacks import FGSM, GOALS, PGD, MomentumPGD
from vidcsl.robustness.attacks.specs import parse_attack
from vidcsl.robustness.threats import L1, L2, Flicker, Linf, Universal

BUDGETS = {"linf": [4, 1], "l2": [0.5], "flicker": [8], "l21": []}
DEFAULTS = {"pgd": {"steps": "7"}}


def parsed(spec: str):
    return parse_attack(spec, budgets=BUDGETS, defaults=DEFAULTS)


def test_a_plain_spec():
    found = parsed("pgd/linf")
    assert (found.name, found.solver) == ("pgd_linf", PGD(steps=7))
    assert found.goal is GOALS["cross_entropy"]
    assert found.threats == {"1/255": Linf(1 / 255), "4/255": Linf(4 / 255)}
    assert list(found.threats) == ["1/255", "4/255"]


def test_goal_options_and_budgets_in_the_spec():
    found = parsed("mifgsm-dlr:steps=3,decay=0.5/l2:frames=0+2,eps=2+0.25,over=frame")
    assert found.goal is GOALS["dlr"]
    assert found.solver == MomentumPGD(steps=3, decay=0.5)
    assert found.threats == {
        "0.25": L2(0.25, frames=(0, 2), over="frame"),
        "2": L2(2.0, frames=(0, 2), over="frame"),
    }
    assert parsed("pgd:steps=9,stop_when_fooled=false/l1:eps=3").solver == PGD(
        9, stop_when_fooled=False
    )
    assert parsed("fgsm/flicker:frames=saliency:2").threats == {
        "8/255": Flicker(8 / 255, frames="saliency:2")
    }
    assert parsed("fgsm/l1:eps=3,region=border:0.1").threats == {"3": L1(3.0, region="border:0.1")}
    assert parsed("fgsm/linf").solver == FGSM()
    shared = parsed("pgd/linf:universal=cyclic").threats["1/255"]
    assert shared == Universal(Linf(1 / 255), cyclic=True)


def test_every_example_in_the_docs_is_an_attack():
    page = (Path(__file__).parents[3] / "docs" / "attacks.md").read_text()
    examples = [line.strip()[2:] for line in page.splitlines() if line.startswith("    - ")]
    assert len(examples) >= 5
    for spec in examples:
        assert parsed(spec).threats


def test_other_specs_have_other_file_names():
    names = [parsed(f"pgd/linf:frames={frames}").name for frames in ("all", "first:1", "0+1")]
    assert len(set(names)) == 3
    assert not any(set(name) & set("/: ") for name in names)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pgd", "SOLVER/THREAT"),
        ("gdp/linf", "unknown 'gdp'"),
        ("pgd/l7", "unknown 'l7'"),
        ("pgd-hope/linf", "unknown attack goal 'hope'"),
        ("pgd:step=3/linf", "no option step; it has steps"),
        ("pgd:steps/linf", "not option=value"),
        ("pgd:steps=3,steps=4/linf", "given twice"),
        ("pgd:steps=2.5/linf", "cannot be read as"),
        ("pgd:steps=0/linf", "1 or more steps"),
        ("pgd:stop_when_fooled=maybe/linf", "cannot be read as"),
        ("pgd/linf:eps=many", "cannot be read as"),
        ("pgd/linf:eps=nan", "eps must be"),
        ("pgd/linf:eps=256", "8/255 rather than 8"),
        ("pgd/linf:universal=maybe", "universal is one of"),
        ("pgd/l21", "no budget"),
        ("pgd/flicker:region=border:0.1", "whole frames"),
    ],
)
def test_specs_that_are_not_understood(spec, message):
    with pytest.raises(UserError, match=message) as error:
        parsed(spec)
    assert repr(spec) in str(error.value)
