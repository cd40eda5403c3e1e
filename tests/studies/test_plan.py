from pathlib import Path

import pytest
import yaml

from vidcsl.errors import UserError
from vidcsl.pipelines.training import check
from vidcsl.studies.plan import read_study

SHIPPED = sorted((Path(__file__).parents[2] / "configs" / "studies").glob("*.yaml"))
STUDY = {
    "_BASE_": "base.yaml",
    "ALL": {"TRAIN": {"EPOCHS": 7}},
    "SEEDS": [0, 2],
    "BY_SEED": [None, {"DATA.TRAIN_LIST": "two.csv"}],
    "ARMS": {
        "plain": None,
        "oracle": {"FALSE_NEGATIVES": {"DETECTOR": "labels"}},
        "supervised": {"METHOD.NAME": "supervised"},
    },
    "BASELINE": "plain",
    "REFERENCES": ["supervised"],
}


@pytest.fixture
def write(tmp_path):
    (tmp_path / "base.yaml").write_text("TRAIN: {EPOCHS: 3, BATCH: 5}\n")

    def written(**changes):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
        return path

    return written


def test_arms_times_seeds_seed_by_seed(write):
    study = read_study(write(), ["TRAIN.BATCH", "9"])
    assert [(run.arm, run.seed) for run in study.runs] == [
        *(("plain", 0), ("oracle", 0), ("supervised", 0)),
        *(("plain", 2), ("oracle", 2), ("supervised", 2)),
    ]
    first, *_, last = study.runs
    assert (first.cfg.TRAIN.EPOCHS, first.cfg.TRAIN.BATCH, first.cfg.DATA.TRAIN_LIST) == (7, 9, "")
    assert (last.cfg.SEED, last.cfg.NAME, last.cfg.DATA.TRAIN_LIST) == (2, "supervised", "two.csv")
    assert str(last.folder) == last.cfg.OUTPUT_DIR == "runs/studies/study/supervised/seed2"


def test_settings_and_grids(write):
    arms = {
        **STUDY["ARMS"],
        "adaptive": {
            "FALSE_NEGATIVES": {"DETECTOR": "adaptive"},
            "GRID": {"FALSE_NEGATIVES": {"CEILING": [0.1, 0.2], "START": [0.0, 0.5]}},
        },
    }
    settings = {"small": {"TRAIN.BATCH": 4}, "large": {"TRAIN.BATCH": 8}}
    study = read_study(write(ARMS=arms, SETTINGS=settings, SEEDS=[1], BY_SEED=[{}]))
    assert len(study.runs) == 2 * (3 + 4)
    run = study.runs[-1]
    assert (run.setting, run.arm) == ("large", "adaptive,ceiling=0.2,start=0.5")
    options = run.cfg.FALSE_NEGATIVES
    assert (run.cfg.TRAIN.BATCH, options.CEILING, options.START) == (8, 0.2, 0.5)
    assert len({run.folder for run in study.runs}) == len(study.runs)


def test_a_setting_goes_before_what_all_have(write):
    settings = {"short": {"TRAIN.EPOCHS": 2}, "whole": {}}
    runs = read_study(write(SETTINGS=settings, SEEDS=[0], BY_SEED=[{}])).runs
    epochs = {run.setting: run.cfg.TRAIN.EPOCHS for run in runs}
    assert epochs == {"short": 2, "whole": 7}


def test_arms_differ_in_what_makes_an_arm_alone(write):
    arms = {**STUDY["ARMS"], "longer": {"TRAIN.EPOCHS": 9}}
    with pytest.raises(UserError, match=r"ARMS.longer has TRAIN.EPOCHS 9, plain 7.*MAY_DIFFER"):
        read_study(write(ARMS=arms))
    study = read_study(write(ARMS=arms, MAY_DIFFER=["TRAIN.EPOCHS"]))
    assert study.differences == {"longer": [("TRAIN.EPOCHS", 9, 7)]}
    foreign = {"MODEL": {"WEIGHTS": "torchvision:a.pt"}, "TRAIN": {"ENABLED": False}}
    study = read_study(write(ARMS={**STUDY["ARMS"], "foreign": foreign}))
    assert {key for key, *_ in study.differences["foreign"]} == {"MODEL.WEIGHTS", "TRAIN.ENABLED"}
    assert [run.external for run in study.runs[:4]] == [False, False, False, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ARM": {}}, "unknown key ARM"),
        ({"BASELINE": None}, "BASELINE is missing"),
        ({"BASELINE": "simclr"}, "no arm is named simclr; there are plain, oracle, supervised"),
        ({"SEEDS": [0]}, "BY_SEED must be a list with options for each of"),
        ({"SEEDS": "0"}, "SEEDS must be a list of whole numbers"),
        ({"SEEDS": [0, 0]}, "each once"),
        ({"BASELINE": ["plain"]}, "no arm is named"),
        ({"REFERENCES": 5}, "REFERENCES must be a list of names"),
        ({"REFERENCES": [["plain"]]}, "REFERENCES must be a list of names"),
        ({"MAY_DIFFER": "MODEL"}, "MAY_DIFFER must be a list of names"),
        ({"ALL": {"SEED": 3}}, "ALL: SEED differs from run to run"),
        ({"ARMS": {"plain": {"OUTPUT_DIR": "x"}}, "REFERENCES": []}, "ARMS.plain: OUTPUT_DIR"),
        ({"ARMS": {"plain": {"TRAIN.EPOCH": 1}}, "REFERENCES": []}, "did you mean TRAIN.EPOCHS"),
        ({"ARMS": {"plain": 3}, "REFERENCES": []}, "ARMS.plain must be keys and values"),
        (
            {"ARMS": {"plain": {"GRID": {"TRAIN.BATCH": 3}}}, "REFERENCES": []},
            "GRID.TRAIN.BATCH must be a list",
        ),
    ],
)
def test_mistakes_are_named(write, changes, message):
    with pytest.raises(UserError, match=message):
        read_study(write(**changes))


def test_no_override_makes_one_of_all_runs(write):
    with pytest.raises(UserError, match="the command line: OUTPUT_DIR differs from run to run"):
        read_study(write(), ["OUTPUT_DIR", "elsewhere"])
    assert read_study(write(REFERENCES=None)).references == ()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_study_is_fair_and_builds(path):
    study = read_study(path)
    assert study.question
    differing = {key for each in study.differences.values() for key, *_ in each}
    # A method with several sets of BatchNorms; a control that costs what two rounds do.
    assert differing <= {"EVALUATE.NORMS", "TRAIN.EPOCHS"}
    for run in study.runs:
        if run.seed == 0:
            check(run.cfg)
