import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.report.run_folder import results
from vidcsl.pipelines.train import headline
from vidcsl.report import summary
from vidcsl.report.summary import read_results
from vidcsl.run_folder import RunFolder


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.4007, "40.1\u202f%"),
        (0, "0.0\u202f%"),
        (None, "undefined"),
        (math.nan, "undefined"),
        (math.inf, "undefined"),
        ("0.3", "undefined"),
        (True, "undefined"),
    ],
)
def test_ratios_are_shown_in_percent(value: object, text: str) -> None:
    assert summary.percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(212, "212"), (13320, "13,320"), (-2.9136, "\u22122.914"), (1e-4, "0.0001"), ("all", "all")],
)
def test_numbers_are_rounded_and_grouped(value: object, text: str) -> None:
    assert summary.plain(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (7.26, "7.3 s"),
        (59.97, "60.0 s"),
        (71.3, "1 min 11 s"),
        (5025, "1 h 23 min"),
        (None, "undefined"),
    ],
)
def test_seconds_are_shown_as_a_duration(seconds: object, text: str) -> None:
    assert summary.duration(seconds) == text


def test_budgets_are_ordered_by_size_not_by_text() -> None:
    values = {"8/255": 0.0, "0.25/255": 0.3, "1/255": None}
    ordered = [(0.25, "0.25/255", 0.3), (1.0, "1/255", None), (8.0, "8/255", 0.0)]
    assert summary.by_budget(values) == ordered


def test_the_halving_budget_is_the_first_to_halve_the_accuracy() -> None:
    values = {"0.25/255": 0.3, "0.5/255": 0.2, "1/255": 0.1}
    assert summary.halving_budget(values, 0.4) == ("0.5/255", 0.2)
    assert summary.halving_budget(values, 0.1) == ("1/255", 0.1)
    assert summary.halving_budget({}, 0.4) is None


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("pgd_linf", "PGD L∞"),
        ("pgd_l2_own_head", "PGD L2, own head"),
        ("pgd_steps=20_linf_alf", "PGD L∞, steps 20, alf"),
        ("pgd_steps=20_step_size=0.1_l2", "PGD L2, steps 20, step size 0.1"),
        ("mine", "mine"),
        ("my_own", "my_own"),
    ],
)
def test_attack_title(name: str, title: str) -> None:
    assert summary.attack_title(name) == title


def test_scores_say_over_which_corruptions_they_were_taken() -> None:
    over = {"P": {"corruptions": 18, "published": 18}, "C": {"corruptions": 1, "published": 12}}
    mean = {"accuracy": 0.262, "retained": 0.6}
    scores = {"mean": mean, "gamma_a": 0.9, "mPC": None, "over": over}
    ran = "19 corruptions (all 18 of suite P, 1 of the 12 of suite C)"
    cards = {card.label: card for card in summary.score_cards({"scores": scores})}
    assert list(cards) == ["Accuracy", "γᵃ, absolute"]  # no mPC: of suite C only a part ran
    assert ran in cards["Accuracy"].note
    corruptions = {"clean": 0.4, "scores": scores}
    (said,) = summary.headline({"corruptions": corruptions})
    assert said.startswith(
        "Accuracy goes from 40.0\u202f% to <strong>26.2\u202f%</strong> on average"
    )
    assert said.endswith(f"on average under {ran}.")
    assert ran in summary.cards({"corruptions": corruptions})[0].note


def test_a_card_has_the_interval_of_the_table() -> None:
    # They were Wilson's above and the bootstrap's below, of one accuracy.
    clean = {"linear_top1": 0.5, "knn_top1": 0.4, "intervals": {"linear_top1": [0.31, 0.69]}}
    cards = summary.cards({"clean": clean, "data": {"test_videos": 100, "chance": 0.1}})
    assert "31.0 to 69.0" in cards[0].note
    assert "30.9 to 49.8" in cards[1].note  # an older run: Wilson's of 40 of 100
    (warning,) = found_warnings_of_a_chance_probe()
    assert "cannot be distinguished" in warning


def found_warnings_of_a_chance_probe() -> list[str]:
    """The interval of the file decides, not one that is made here."""
    content = results()
    content["clean"] |= {"linear_top1": 0.25, "intervals": {"linear_top1": [0.19, 0.31]}}
    content["attack_checks"], content["data"]["test_videos"] = {}, 1000
    content["false_negatives"] = {}
    return summary.warnings({"lists": {}} | content, damaged=())


def test_a_table_of_models_says_how_much_of_a_suite_ran():
    mean = {"accuracy": 0.3, "gamma_a": 0.8, "gamma_r": 0.6, "interval": {"accuracy": [0.2, 0.4]}}
    scores = {"over": {"C": {"corruptions": 1, "published": 12}}, "suites": {"C": {"all": mean}}}
    table = summary.compare_corruptions({"a": {"clips": 9, "clean": 0.5, "scores": scores}})
    assert "C, 1 of the 12: mean (95 %)" in table


def test_the_terminal_says_over_which_corruptions_the_mean_is(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.update_results({"corruptions": results()["corruptions"]})
    ran = "8 corruptions (5 of the 18 of suite P, 3 of the 12 of suite C)"
    assert f"mean accuracy 30.1% (40.1% when clean), {ran}" in headline(folder)


def test_accuracy_under_attack_is_beside_that_of_the_same_clips_when_clean(tmp_path: Path) -> None:
    # Whole videos are 40.1 % right, their central clips 34.0 %: an attack falls from there.
    content = results()
    folder = RunFolder(tmp_path)
    folder.update_results(content)
    assert "pgd_linf  clean: 34.0%, 0.1/255: 30.7%" in headline(folder)
    assert "precision 41.2% (19.9% at random)" in headline(folder)
    said = "Accuracy of 212 single clips goes from 34.0\u202f% to <strong>12.7\u202f%</strong>"
    assert any(sentence.startswith(said) for sentence in summary.headline(content))
    (card,) = [each for each in summary.cards(content) if each.label.startswith("PGD L∞")]
    assert card.note == "95 %: 8.9 to 17.9\u202f%; 34.0\u202f% when clean"


@pytest.mark.parametrize(
    ("training", "text"),
    [
        ({"epochs": 90, "rounds": 1, "rounds_method": ""}, "90 epochs."),
        ({"epochs": 90, "rounds": 3, "rounds_method": ""}, "3 rounds of 90 epochs."),
        (
            {"epochs": 90, "rounds": 5, "rounds_method": "simclr"},
            "5 rounds of 90 epochs (all but the last by simclr).",
        ),
    ],
)
def test_the_headline_says_how_long_was_trained(training: dict[str, object], text: str) -> None:
    assert summary.headline({"training": training}) == [text]


def test_an_empty_run_has_no_cards_and_no_headline() -> None:
    assert summary.cards({}) == []
    assert summary.headline({}) == []


def found_warnings(tmp_path: Path, damaged: tuple[str, ...] = (), **changes: Any) -> list[str]:
    content = results()
    for section, values in changes.items():
        content[section] = {**content[section], **values}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    return summary.warnings(read_results(path), damaged=damaged)


def test_failed_checks_come_first(tmp_path: Path) -> None:
    first, *rest = found_warnings(tmp_path)
    assert first.startswith("PGD L∞: the check “more steps never help the model” failed")
    assert rest == []


def test_few_videos_missing_ones_and_chance_are_warned_of(tmp_path: Path) -> None:
    found = found_warnings(
        tmp_path,
        damaged=("a.mp4",),
        data={"test_videos": 12, "left_out": ["b.mp4", "c.mp4"]},
        clean={"linear_top1": 0.25},
        attack_checks={"pgd_linf": {"checks": []}},
    )
    assert [text.split()[0] for text in found] == ["Only", "1", "2", "The"]
    assert "25.0" in found[-1]
    assert "20.0" in found[-1]


def test_a_detector_that_guesses_is_warned_of(tmp_path: Path) -> None:
    passed = {"pgd_linf": {"checks": []}}
    guess = {"detector": "adaptive", "precision": 0.21, "chance": 0.2}
    (found,) = found_warnings(tmp_path, attack_checks=passed, false_negatives=guess)
    assert found.startswith("The detector adaptive is hardly better than chance: 21.0")
    better = {"detector": "adaptive", "precision": 0.3, "chance": 0.2}
    assert found_warnings(tmp_path, attack_checks=passed, false_negatives=better) == []


def test_the_headline_names_the_teacher() -> None:
    flagged = {"detector": "teacher", "teacher": "a{b}.npz", "precision": 0.5, "chance": 0.1}
    (sentence,) = summary.headline({"false_negatives": flagged})
    assert "50.0" in sentence
    assert sentence.endswith("the teacher is a{b}.npz.")


def test_a_run_that_learned_nothing_says_so_in_report_and_terminal(tmp_path: Path) -> None:
    content = results()
    content["training"] |= {"loss": 5.7, "loss_of_chance": 4.143}
    content["false_negatives"] |= {"precision": 0.140, "chance": 0.140}
    content["clean"]["linear_top1"] = 0.21
    content["clean"].pop("intervals", None)
    found = summary.nothing_learned(content)
    assert [text.split()[1] for text in found] == ["last", "detector", "linear"]
    assert "5.70, is not below 4.14" in found[0]
    assert set(found) <= set(summary.warnings({"lists": {}} | content, damaged=()))
    folder = RunFolder(tmp_path)
    folder.update_results(content)
    assert headline(folder).count("warning: ") >= 3
    assert found[0] in headline(folder)
    content["training"]["loss"] = 3.0
    content["false_negatives"]["precision"] = 0.5
    content["clean"]["linear_top1"] = 0.5
    assert summary.nothing_learned(content) == []


def test_a_detector_at_chance_is_named() -> None:
    found = {"detector": "adaptive", "precision": 0.108, "chance": 0.094}
    (warning,) = summary.nothing_learned({"false_negatives": found})
    assert "hardly better than chance" in warning


def test_videos_shorter_than_a_clip_are_named() -> None:
    found = summary.list_warnings({"short": 48, "looked_at": 48, "filled_by": "loop"})
    assert found[0].startswith("48 of 48 training videos are shorter than a clip: looped")
    assert summary.list_warnings({"short": 0, "looked_at": 48, "filled_by": "loop"}) == []
