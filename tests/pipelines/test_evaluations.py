"""Later evaluations of a run: its own record stays, what is comparable joins it."""

import shutil

import pytest

from tests.tiny_job import arguments, final, results_of
from vidcsl.cli import main
from vidcsl.config import load_config
from vidcsl.pipelines.evaluations import joined

QUICK = ["ATTACK.RUNS", "[]", "CORRUPT.NAMES", "[]", "REPORT.ENABLED", "false"]


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def records(run):
    return sorted((run / "evaluations").iterdir())


def test_the_record_of_the_training_stays_and_new_attacks_and_budgets_join_it(run, finished):
    before = {name: (run / name).read_text() for name in ("config.yaml", "environment.json")}
    words = ["ATTACK.RUNS", "[pgd/linf, pgd/l2]", "ATTACK.EPS_LINF", "[2]", "ATTACK.EPS_L2", "[1]"]
    words += ["CORRUPT.NAMES", "[C/brightness]", "REPORT.ENABLED", "false"]
    assert main(["evaluate", "--checkpoint", str(run), *words]) == 0
    assert {name: (run / name).read_text() for name in before} == before
    mine, theirs = results_of(run), results_of(finished)
    assert list(mine["attacks"]["pgd_linf"]) == ["1/255", "2/255", "8/255"]
    assert mine["attacks"]["pgd_linf"].items() >= theirs["attacks"]["pgd_linf"].items()
    assert mine["attacks"].keys() == {*theirs["attacks"], "pgd_l2"}
    assert mine["corruptions"]["C"].keys() == {*theirs["corruptions"]["C"], "brightness"}
    assert mine["corruptions"]["P"] == theirs["corruptions"]["P"]
    assert mine["training"] == theirs["training"]
    assert mine["cost"]["seconds"]["pretraining"] == theirs["cost"]["seconds"]["pretraining"]
    (record,) = records(run)
    assert {path.name for path in record.iterdir()} == {
        *("config.yaml", "environment.json", "results.json")
    }
    assert results_of(record)["attacks"].keys() == {"pgd_linf", "pgd_l2"}
    assert load_config(record / "config.yaml").ATTACK.EPS_L2 == [1.0]


def test_an_attack_under_other_settings_stays_apart_and_that_is_said(run, finished, capsys):
    words = ["ATTACK.RUNS", "[pgd/linf]", "ATTACK.QUANTISE", "true", "CORRUPT.NAMES", "[]"]
    assert main(["evaluate", "--checkpoint", str(run), *words]) == 0
    assert "under other settings than before" in capsys.readouterr().err
    assert results_of(run)["attacks"] == results_of(finished)["attacks"]
    assert results_of(records(run)[0])["attacks"].keys() == {"pgd_linf"}


def test_other_weights_have_a_folder_of_their_own(data, config, run, finished):
    other = final(run).with_name("epoch00001_step000000.pt")
    assert other.exists()
    words = [*arguments(data, config, run, *QUICK), "--checkpoint", str(other)]
    assert main(["evaluate", *words]) == 0
    mine, theirs = results_of(run), results_of(finished)
    assert mine == theirs
    (record,) = records(run)
    assert results_of(record)["clean"]
    assert results_of(record)["weights"] != theirs["weights"]
    assert (record / "artifacts").is_dir()


def test_another_test_list_stays_apart(data, run, finished, tmp_path):
    lines = (data / "test.csv").read_text().splitlines()
    (tmp_path / "few.csv").write_text("\n".join(lines[:-1]) + "\n")
    words = ["DATA.TEST_LIST", str(tmp_path / "few.csv"), *QUICK]
    assert main(["evaluate", "--checkpoint", str(run), *words]) == 0
    assert results_of(run) == results_of(finished)
    assert results_of(records(run)[0])["data"]["test_videos"] == len(lines) - 2


def test_the_corrupt_command_adds_to_what_is_there(run, finished):
    assert main(["corrupt", "--checkpoint", str(run), "CORRUPT.NAMES", "[C/brightness]"]) == 0
    mine, theirs = results_of(run), results_of(finished)
    assert mine["corruptions"]["C"].keys() == {*theirs["corruptions"]["C"], "brightness"}
    assert mine["clean"] == theirs["clean"]


def test_where_nothing_was_trained_the_first_evaluation_stays_too(data, config, finished, tmp_path):
    out = tmp_path / "evaluated"

    def evaluate(command, checkpoint, *words):
        given = [*arguments(data, config, out, *QUICK, *words), "--checkpoint", str(checkpoint)]
        assert main([command, *given]) == 0

    first = ["ATTACK.RUNS", "[pgd/linf]", "ATTACK.EPS_LINF", "[1]"]
    evaluate("evaluate", final(finished), *first)
    before = {name: (out / name).read_text() for name in ("config.yaml", "environment.json")}
    alone = results_of(out)
    # The same command once more, as after a kill, is the same evaluation.
    evaluate("evaluate", final(finished), *first)
    assert not (out / "evaluations").exists()
    # What is comparable joins.
    more = ["ATTACK.RUNS", "[pgd/linf, pgd/l2]", "ATTACK.EPS_LINF", "[2]", "ATTACK.EPS_L2", "[1]"]
    evaluate("evaluate", final(finished), *more)
    evaluate("corrupt", final(finished), "CORRUPT.NAMES", "[C/brightness]")
    both = results_of(out)
    assert list(both["attacks"]["pgd_linf"]) == ["1/255", "2/255"]
    assert both["attacks"]["pgd_linf"]["1/255"] == alone["attacks"]["pgd_linf"]["1/255"]
    assert both["attacks"].keys() == {"pgd_linf", "pgd_l2"}
    assert both["corruptions"]["C"].keys() == {"brightness"}
    assert {name: (out / name).read_text() for name in before} == before
    # What is not stays apart: other weights.
    other = final(finished).with_name("epoch00001_step000000.pt")
    evaluate("evaluate", other, *first)
    assert results_of(out) == both
    apart = [each for each in records(out) if (each / "artifacts").is_dir()]
    assert [results_of(each)["weights"] != both["weights"] for each in apart] == [True]


def test_what_is_joined():
    settings = {"attack": "pgd/linf", "solver": "PGD", "clips": 8, "settings": "x"}
    before = {
        "attacks": {"a": {"1/255": 0.5, "10/255": 0.1}},
        "attack_settings": {"a": settings},
        "clean": {"views": "3", "knn_top1": 0.5, "intervals": {"knn_top1": [0, 1]}},
        "cost": {"seconds": {"pretraining": 9.0, "a": 1.0}},
    }
    new = {
        "attacks": {"a": {"2/255": 0.3}, "b": {"1": 0.2}},
        "attack_settings": {"a": settings, "b": settings},
        "clean": {"views": "3", "linear_top1": 0.6, "intervals": {"linear_top1": [0, 1]}},
        "cost": {"seconds": {"a": 2.0, "b": 3.0}},
    }
    both, apart = joined(before, new)
    assert apart == []
    assert list(both["attacks"]["a"].items()) == [("1/255", 0.5), ("2/255", 0.3), ("10/255", 0.1)]
    assert both["attacks"]["b"] == {"1": 0.2}
    assert both["clean"]["intervals"].keys() == {"knn_top1", "linear_top1"}
    assert both["cost"]["seconds"] == {"pretraining": 9.0, "a": 1.0, "b": 3.0}
    new["attack_settings"]["a"] = {**settings, "settings": "y"}
    new["clean"] = {"views": "5", "knn_top1": 0.7}
    both, apart = joined(before, new)
    assert apart == ["a", "clean accuracy (other views)"]
    assert both["attacks"]["a"] == before["attacks"]["a"]
    assert both["clean"] == before["clean"]
