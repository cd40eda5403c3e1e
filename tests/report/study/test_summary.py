import json
import shutil
import unicodedata
from statistics import stdev

import pytest

from tests.report.study.made import write_run
from vidcsl.cli import main
from vidcsl.errors import UserError
from vidcsl.report.study import markdown, read_arms, summarise
from vidcsl.report.study.records import read_record
from vidcsl.report.study.sentences import headline

# Of ten videos: plain keeps 2 at 1/255, removal 5, supervised 8.
PLAIN = [None] * 2 + ["1/255"] * 6 + ["clean"] * 2
REMOVAL = [None] * 5 + ["1/255"] * 3 + ["clean"] * 2
SUPERVISED = [None] * 8 + ["2/255"] * 0 + ["clean"] * 2


@pytest.fixture
def arms(tmp_path):
    folders = [
        write_run(tmp_path, "plain", 0, fooled=PLAIN * 4),
        write_run(tmp_path, "plain", 1, fooled=PLAIN * 4, clean=0.6),
        write_run(
            *(tmp_path, "removal", 0),
            fooled=REMOVAL * 4,
            false_negatives={"removed": 0.1, "precision": 0.5, "recall": 0.5},
        ),
        write_run(tmp_path, "supervised", 0, fooled=SUPERVISED * 4),
    ]
    return read_arms(folders)


@pytest.fixture
def summary(arms):
    return summarise(arms, baseline="plain", references=["supervised"])


def test_two_runs_of_one_name_and_seed_are_not_two_seeds(tmp_path):
    first = write_run(tmp_path, "plain", 0, fooled=PLAIN * 4)
    twin = shutil.copytree(first, tmp_path / "twin")
    with pytest.raises(UserError, match="are both plain, seed 0"):
        read_arms([first, twin])


def test_means_and_deviations_over_seeds(summary):
    found = summary["arms"]["plain"]["figures"]
    assert found["linear_top1"]["mean"] == pytest.approx(0.7)
    assert found["linear_top1"]["deviation"] == pytest.approx(stdev([0.8, 0.6]))
    assert found["knn_top1"]["deviation"] == 0
    assert found["corrupted"]["mean"] == pytest.approx(0.3)
    assert found["corrupted_retained"]["mean"] == pytest.approx(0.75)
    assert summary["arms"]["removal"]["figures"]["precision"]["mean"] == 0.5
    attack = summary["arms"]["plain"]["attacks"]["pgd_linf"]
    assert attack["budgets"]["1/255"]["accuracy"]["mean"] == pytest.approx(0.2)
    assert attack["budgets"]["1/255"]["survival"]["mean"] == pytest.approx(0.25)


def test_the_gap_closed_and_the_test_against_the_baseline(summary):
    removal = summary["arms"]["removal"]["attacks"]["pgd_linf"]
    gap = removal["gap_closed"]["supervised"]["1/255"]
    assert gap["value"] == pytest.approx(0.5)
    assert gap["interval"][0] < 0.5 < gap["interval"][1]
    assert gap["by_seed"] == {0: pytest.approx(0.5)}
    against = removal["against_baseline"]
    assert against["clean"]["difference"] == 0
    assert (against["1/255"]["better"], against["1/255"]["worse"]) == (12, 0)
    assert against["1/255"]["p"] == pytest.approx(2 * 0.5**12)


def test_the_gap_is_undefined_where_the_reference_is_not_ahead(arms):
    swapped = summarise(arms, baseline="supervised", references=["plain"])
    gap = swapped["arms"]["removal"]["attacks"]["pgd_linf"]["gap_closed"]["plain"]["1/255"]
    assert (gap["value"], gap["interval"]) == (None, None)
    document = {"name": "a", "question": "", "notes": [], "settings": {"": swapped}}
    assert "| removal | undefined | undefined |" in markdown(document)


def test_a_gap_at_another_budget_than_the_telling_one_is_told(tmp_path):
    plain = [None] * 3 + ["1/255"] * 5 + ["clean"] * 2
    supervised = [None] * 2 + ["2/255"] * 4 + ["1/255"] * 2 + ["clean"] * 2
    folders = [
        write_run(tmp_path, name, 0, fooled=fooled * 4)
        for name, fooled in (("plain", plain), ("supervised", supervised))
    ]
    arms = read_arms(folders)
    told = headline(summarise(arms, baseline="plain", references=["supervised"]))
    assert "at ε = 2/255, plain keeps 30.0 % and supervised keeps 20.0 %" in normal(told[0])
    assert told[1] == "There is no gap to close at that budget; elsewhere there is one."
    assert "at ε = 1/255, plain keeps 30.0 % and supervised keeps 60.0 %" in normal(told[2])
    swapped = headline(summarise(arms, baseline="supervised", references=["plain"]))
    assert swapped[-1] != "There is no gap to close."  # at 2/255 plain is ahead
    level = headline(
        summarise({"a": arms["plain"], "b": arms["plain"]}, baseline="a", references=["b"])
    )
    assert level[-1] == "There is no gap to close."


def normal(text):
    return unicodedata.normalize("NFKC", text)


def test_outcomes_that_do_not_give_the_results_are_not_used(tmp_path):
    folder = write_run(tmp_path, "plain", 0, fooled=PLAIN)
    assert (
        read_record(folder).outcomes["pgd_linf"].right["1/255"].tolist() == [True] * 2 + [False] * 8
    )
    results = json.loads((folder / "results.json").read_text())
    results["attacks"]["pgd_linf"]["1/255"] = 0.3
    (folder / "results.json").write_text(json.dumps(results))
    assert read_record(folder).outcomes == {}


def test_an_unknown_name_is_an_error(arms):
    with pytest.raises(UserError, match="no run is named other; there are plain, removal"):
        summarise(arms, baseline="other", references=["supervised"])


def test_runs_are_compared_from_the_command_line(arms, tmp_path, capsys):
    folders = [str(each.folder) for records in arms.values() for each in records]
    asked = [*folders, "--baseline", "plain", "--reference", "supervised"]
    assert main(["compare", *asked]) == 0
    printed = capsys.readouterr().out
    assert "removal closes 50 % [" in printed
    assert main(["compare", *asked, "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "study.md").read_text().strip() == printed.strip()
    page = (tmp_path / "out" / "study.html").read_text()
    assert page.count("<svg") >= 2
    assert "http" not in page.replace("http-equiv", "")
    found = json.loads((tmp_path / "out" / "study.json").read_text())
    assert found["settings"][""]["arms"]["plain"]["seeds"] == [0, 1]
