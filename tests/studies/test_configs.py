from pathlib import Path

import pytest

from vidcsl.pipelines.training import check
from vidcsl.studies.plan import read_study

STUDIES = sorted((Path(__file__).parents[2] / "configs" / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_shipped_study_is_fair_and_builds(path):
    study = read_study(path)
    assert study.question
    differing = {key for each in study.differences.values() for key, *_ in each}
    # A method with several sets of BatchNorms; a control that costs what two rounds do.
    assert differing <= {"EVALUATE.NORMS", "TRAIN.EPOCHS"}
    for run in study.runs:
        if run.seed == 0:
            check(run.cfg)
