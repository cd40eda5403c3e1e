import json
import shutil
import unicodedata
from statistics import stdev

import pytest

from tests.studies.made import read_arms, write_run
from vidcsl.cli import main
from vidcsl.errors import UserError
from vidcsl.evaluation.statistics import adjusted
from vidcsl.studies.analysis import (
    FIGURES,
    mean_corrupted,
    read_record,
    summarise,
)
from vidcsl.studies.page import halving_budget, headline, markdown

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
            false_negatives={"flagged": 0.1, "precision": 0.5, "recall": 0.5},
        ),
        write_run(tmp_path, "supervised", 0, fooled=SUPERVISED * 4),
    ]
    return read_arms(folders)


@pytest.fixture
def summary(arms):
    return summarise(arms, baseline="plain", references=["supervised"])


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


def test_the_gap_is_that_of_the_seeds_that_all_three_arms_have(tmp_path):
    kept = {("plain", 0): 2, ("plain", 1): 0, ("removal", 0): 4, ("removal", 2): 6}
    folders = [
        write_run(tmp_path, name, seed, fooled=([None] * few + ["1/255"] * (10 - few)) * 4)
        for (name, seed), few in {**kept, ("supervised", 0): 7, ("supervised", 2): 9}.items()
    ]
    arms = read_arms(folders)
    found = summarise(arms, baseline="plain", references=["supervised"])["arms"]["removal"]
    gap = found["attacks"]["pgd_linf"]["gap_closed"]["supervised"]["1/255"]
    assert gap["value"] == pytest.approx(2 / 5)
    assert gap["by_seed"] == {0: pytest.approx(2 / 5)}


def test_a_gap_whose_seeds_have_not_all_their_outcomes_has_no_interval(tmp_path):
    kept = {"plain": PLAIN, "removal": REMOVAL, "supervised": SUPERVISED}
    folders = [
        write_run(tmp_path, name, seed, fooled=fooled * 4)
        for name, fooled in kept.items()
        for seed in range(2)
    ]
    shutil.rmtree(folders[3] / "answers")
    found = summarise(read_arms(folders), baseline="plain", references=["supervised"])
    gap = found["arms"]["removal"]["attacks"]["pgd_linf"]["gap_closed"]["supervised"]["1/255"]
    assert (sorted(gap["by_seed"]), gap["interval"]) == ([0, 1], None)


def test_all_tests_of_a_study_are_adjusted_together(summary):
    tests = [
        test
        for arm in summary["arms"].values()
        for test in arm["attacks"]["pgd_linf"]["against_baseline"].values()
    ]
    assert len(tests) == 2 * 3
    assert [test["p_adjusted"] for test in tests] == adjusted([test["p"] for test in tests])
    assert [test["p_adjusted"] for test in tests] != [test["p"] for test in tests]


def test_the_main_reference_closes_no_gap_and_another_does(arms):
    found = summarise(arms, baseline="plain", references=["supervised", "removal"])["arms"]
    towards = {name: set(arm["attacks"]["pgd_linf"]["gap_closed"]) for name, arm in found.items()}
    assert towards == {"plain": set(), "removal": {"supervised"}, "supervised": set()}


def test_corruptions_count_alike_whatever_their_severities_and_suite():
    suites = {"P": {"jpeg": [0.2] * 5}, "C": {"fog": [0.5, None]}, "V": {"nal_loss": [0.8] * 2}}
    assert mean_corrupted({"corruptions": {"clean": 0.9, **suites}}) == pytest.approx(0.5)
    assert mean_corrupted({"corruptions": {"P": {"jpeg": [None]}}}) is None


def test_hours_are_those_of_all_stages():
    assert FIGURES["hours"]({"cost": {"seconds": {"a": 1800, "b": 5400, "c": None}}}) == 2


def test_the_gap_is_undefined_where_the_reference_is_not_ahead(arms):
    swapped = summarise(arms, baseline="supervised", references=["plain"])
    gap = swapped["arms"]["removal"]["attacks"]["pgd_linf"]["gap_closed"]["plain"]["1/255"]
    assert (gap["value"], gap["interval"]) == (None, None)
    document = {"name": "a", "question": "", "notes": [], "settings": {"": swapped}}
    assert "| removal | undefined | undefined |" in markdown(document)


def test_a_gap_at_another_budget_than_the_halving_one_is_reported(tmp_path):
    plain = [None] * 3 + ["1/255"] * 5 + ["clean"] * 2
    supervised = [None] * 2 + ["2/255"] * 4 + ["1/255"] * 2 + ["clean"] * 2
    folders = [
        write_run(tmp_path, name, 0, fooled=fooled * 4)
        for name, fooled in (("plain", plain), ("supervised", supervised))
    ]
    arms = read_arms(folders)
    sentences = headline(summarise(arms, baseline="plain", references=["supervised"]))
    assert "at ε = 2/255, plain keeps 30.0 % and supervised keeps 20.0 %" in normal(sentences[0])
    assert sentences[1] == "There is no gap to close at that budget; the widest one is at another."
    assert "at ε = 1/255, plain keeps 30.0 % and supervised keeps 60.0 %" in normal(sentences[2])
    swapped = headline(summarise(arms, baseline="supervised", references=["plain"]))
    assert not swapped[-1].startswith("There is no gap")  # at 2/255 plain is ahead
    level = headline(
        summarise({"a": arms["plain"], "b": arms["plain"]}, baseline="a", references=["b"])
    )
    assert level[-1] == "There is no gap to close, at this budget or any other."


def test_the_best_arm_is_named_with_what_it_costs(tmp_path):
    kept = {"plain": 2, "weak": 3, "removal": 5, "supervised": 8, "other reference": 6}
    clean = {"removal": 0.6}
    folders = [
        write_run(
            *(tmp_path, name, seed),
            fooled=([None] * few + ["1/255"] * (10 - few)) * 4,
            clean=clean.get(name, 0.7),
        )
        for name, few in kept.items()
        for seed in range(3)
    ]
    arms = read_arms(folders)
    references = ["supervised", "other reference"]
    sentences = headline(summarise(arms, baseline="plain", references=references))
    assert "(supervised is ahead in 3 of 3 seeds)" in sentences[0]
    assert sentences[1].startswith("removal closes 50")
    assert "the most of 2 arms, over 3 seeds" in sentences[1]
    assert sentences[1].endswith("with \u221210.0 points of clean accuracy.")
    assert sentences[2] == "It closes some of it in 3 of the 3 seeds that have a gap."
    assert sentences[3].startswith("With an interval above 0: weak 17")
    assert sentences[4:] == ["The figure of the best of several arms tends to be too high."]
    few = {name: records[:2] for name, records in arms.items()}
    sentences = headline(summarise(few, baseline="plain", references=references))
    assert sentences[-1].startswith("With fewer than 3 seeds")


def test_no_sentence_says_more_than_its_numbers(tmp_path):
    few, more, none = [None] * 2, [None] * 5, [None] * 8

    def run(name, seed, kept, clean, **sections):
        fooled = (kept + ["1/255"] * (10 - len(kept))) * 4
        return write_run(tmp_path, name, seed, fooled=fooled, clean=clean, **sections)

    def said(*folders, references=("supervised",)):
        return headline(summarise(read_arms(folders), baseline="plain", references=references))

    # The removal has one seed of the two, and is less accurate than plain in that one only.
    plain = [run("plain", 0, few, 0.8), run("plain", 1, few, 0.2)]
    reference = [run("supervised", seed, none, 0.8) for seed in range(2)]
    removal = run("removal", 0, more, 0.6)
    (_, best, *rest) = said(*plain, *reference, removal)
    assert best.endswith("over 1 seed, with \u221220.0 points of clean accuracy.")
    assert not any("of the" in sentence for sentence in rest)
    # An arm that closes nothing.
    useless = [run("useless", seed, few, 0.6) for seed in range(2)]
    sentences = said(*plain, *reference, *useless)
    assert "useless closes none (0 % [0, 0]) of that gap over 2 seeds" in sentences[1]
    assert sentences[2] == "It closes some of it in 0 of the 2 seeds that have a gap."
    # One that closes something in so few videos that it may be nothing.
    little = [run("little", seed, [None] * (3 - seed), 0.6) for seed in range(2)]
    assert any("interval reaches 0" in each for each in said(*plain, *reference, *little))
    # A gap of one video in forty: whatever is divided by it says nothing.
    barely = PLAIN[:1] + (PLAIN[2:] + [None] * 2) * 3 + PLAIN[1:2] + PLAIN[2:9] + [None]
    near = write_run(tmp_path, "near", 0, fooled=barely)
    sentences = said(*plain, near, removal, references=["near"])
    assert "too few to be sure that there is a gap" in sentences[-1]
    assert not any("closes" in sentence for sentence in sentences)
    # No interval, for want of the videos' outcomes: that is no doubt about the gap.
    shutil.rmtree(removal / "answers")
    text = " ".join(said(*plain, *reference, removal))
    assert "the outcome of each video is not known" in text
    assert "too few to be sure" not in text
    # Nothing to say, and why.
    assert said(*plain, references=()) == ["No gap is known: no reference has results."]
    assert said(plain[0], reference[1]) == [
        "No gap is known: plain and supervised share no seed and budget."
    ]
    clean = run("plain", 3, few, 0.8, attacks={})
    assert said(clean, *reference) == ["No gap is known: plain was not attacked."]


def test_what_arms_set_is_what_their_runs_were_given(tmp_path):
    def run(name, seed, **options):
        config = {
            "NAME": name,
            "SEED": seed,
            "DATA": {"TRAIN_LIST": f"train{seed}.csv", "FRAMES": 8},
            "FALSE_NEGATIVES": {"DETECTOR": "none", "CEILING": 0.1, **options},
        }
        return write_run(tmp_path, name, seed, fooled=PLAIN, config=config)

    folders = [run("plain", seed) for seed in range(2)]
    folders += [run("memory", seed, DETECTOR="memory") for seed in range(2)]
    found = summarise(read_arms(folders), baseline="plain", references=[])
    assert found["options"]["differing"] == {
        "plain": {"FALSE_NEGATIVES.DETECTOR": ["none"]},
        "memory": {"FALSE_NEGATIVES.DETECTOR": ["memory"]},
    }
    assert found["options"]["shared"] == {
        "DATA.TRAIN_LIST": ["train0.csv", "train1.csv"],
        "DATA.FRAMES": [8],
        "FALSE_NEGATIVES.CEILING": [0.1],
    }
    document = {"name": "a", "question": "", "notes": [], "settings": {"": found}}
    assert "| arm | FALSE_NEGATIVES.DETECTOR |\n|---|---|\n| plain | none |" in markdown(document)
    (folders[0] / "config.yaml").write_text("NAME: [")
    with pytest.raises(UserError, match=r"config\.yaml is damaged"):
        read_arms(folders)


def test_the_halving_budget_is_where_half_is_lost(tmp_path):
    folders = [
        write_run(tmp_path, name, 0, fooled=([None] * 4 + ["1/255"] * 4 + ["clean"] * 2) * 4)
        for name in ("plain", "supervised")
    ]
    summary = summarise(read_arms(folders), baseline="plain", references=["supervised"])
    assert halving_budget(summary, "pgd_linf") == "1/255"


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


def test_answers_of_several_processes_are_joined_in_the_order_of_the_list(tmp_path):
    folder = write_run(tmp_path, "plain", 0, fooled=PLAIN)
    wanted = read_record(folder).outcomes["pgd_linf"]
    (result_cache,) = (folder / "answers").iterdir()
    settings, answers = map(json.loads, result_cache.read_text().splitlines()[:2])
    for rank, mine in enumerate((slice(1, None, 2), slice(0, None, 2))):
        part = {key: answers[key][mine] for key in ("videos", "answers")}
        lines = (settings, {**answers, **part})
        path = folder / "answers" / f"{0:016x}.rank{rank}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_record(folder).outcomes["pgd_linf"]
    assert found.videos == wanted.videos == tuple(range(10))
    assert {key: right.tolist() for key, right in found.right.items()} == {
        key: right.tolist() for key, right in wanted.right.items()
    }


def test_the_seeds_of_an_arm_are_in_their_order(tmp_path):
    folders = [write_run(tmp_path, "plain", seed, fooled=PLAIN) for seed in (2, 0, 1)]
    assert [record.seed for record in read_arms(folders)["plain"]] == [0, 1, 2]


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
    assert page.count('class="chart"') >= 2
    found = json.loads((tmp_path / "out" / "study.json").read_text())
    assert found["settings"][""]["arms"]["plain"]["seeds"] == [0, 1]
