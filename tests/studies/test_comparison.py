"""Runs that no study planned, side by side: what is common is compared, what differs is named."""

import json

import pytest

from tests.studies.made import write_run
from vidcsl.cli import main
from vidcsl.errors import UserError
from vidcsl.studies.comparison import compare
from vidcsl.studies.page import markdown

FEW, MORE = [None] * 4 + ["1/255"] * 16, [None] * 12 + ["1/255"] * 8


def attacked(solver, *, clips=20, spec="pgd/linf"):
    settings = {"attack": spec, "solver": solver, "clips": clips, "clean": 0.5}
    return {"attack_settings": {"pgd_linf": settings}}


def corrupted(*, clips=32, **suites):
    scores = {
        "suites": {
            suite: {"all": {"accuracy": 0.25, "interval": {}}, "noise": {"accuracy": 0.2}}
            for suite in suites
        }
    }
    return {"corruptions": {"clean": 0.4, "clips": clips, **suites, "scores": scores}}


def lists(test, videos=20, train="t"):
    return {"lists": {"train": train, "test": test, "test_videos": videos}}


def table(text, title):
    """Column names of a Markdown table, and its rows by their first cell."""
    lines = text.split(f"### {title}\n")[1].split("\n### ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return rows[0], {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def test_no_baseline_is_needed_to_look(tmp_path, capsys):
    folders = [write_run(tmp_path, name, 0, fooled=FEW) for name in ("one", "two")]
    assert main(["compare", *map(str, folders)]) == 0
    said = capsys.readouterr().out
    assert "| one |" in said
    assert "gap" not in said
    assert main(["compare", *map(str, folders), "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out/study.html").read_text()
    assert "What the numbers say" not in page
    assert "No gap" not in page


def test_a_baseline_alone_gives_tests_and_no_gap(tmp_path):
    folders = [
        write_run(tmp_path, name, 0, fooled=each) for name, each in (("one", FEW), ("two", MORE))
    ]
    text = markdown(compare(folders, baseline="one"))
    assert "PGD L∞: against one, video by video" in text
    assert "that is closed" not in text
    with pytest.raises(UserError, match="no run is named three; there are one, two"):
        compare(folders, baseline="three")
    with pytest.raises(UserError, match="--baseline"):
        compare(folders, references=["one"])


def test_runs_of_other_test_lists_are_tables_of_their_own(tmp_path):
    config = {"DATA": {"TEST_LIST": "lists/a.csv"}}
    folders = [
        write_run(tmp_path, "one", 0, fooled=FEW, config=config, **lists("aaaa")),
        write_run(tmp_path, "two", 0, fooled=MORE, config=config, **lists("aaaa", train="other")),
        write_run(tmp_path, "far", 0, fooled=FEW, **lists("bbbb", 70)),
    ]
    document = compare(folders)
    assert [list(each["arms"]) for each in document["settings"].values()] == [
        ["one", "two"],
        ["far"],
    ]
    first, second = document["settings"]
    assert "lists/a.csv" in first
    assert "70 videos" in second
    notes = " ".join(document["notes"])
    assert "2 test lists" in notes
    assert "The training lists are not the same: one; two." in notes


def test_an_attack_with_other_steps_or_clips_has_a_table_of_its_own(tmp_path):
    folders = [
        write_run(tmp_path, "one", 0, fooled=FEW, **attacked("PGD(steps=10)")),
        write_run(tmp_path, "two", 0, fooled=MORE, **attacked("PGD(steps=10)")),
        write_run(tmp_path, "long", 0, fooled=MORE, **attacked("PGD(steps=40)")),
        write_run(tmp_path, "wide", 0, fooled=MORE, **attacked("PGD(steps=10)", clips=90)),
    ]
    document = compare(folders, baseline="one")
    text = markdown(document)
    assert list(table(text, "PGD L∞, PGD(steps=10), 20 clips: accuracy")[1]) == ["one", "two"]
    assert list(table(text, "PGD L∞, PGD(steps=40), 20 clips: accuracy")[1]) == ["long"]
    assert list(table(text, "PGD L∞, PGD(steps=10), 90 clips: accuracy")[1]) == ["wide"]
    tested = [line for line in text.splitlines() if "against one, video by video" in line]
    assert tested == ["### PGD L∞, PGD(steps=10), 20 clips: against one, video by video"]
    assert any("PGD L∞ is not the same attack in all runs" in note for note in document["notes"])
    # The same attack keeps its plain name.
    assert "### PGD L∞: accuracy" in markdown(compare(folders[:2]))


def test_corruptions_share_a_column_only_where_they_are_the_same(tmp_path):
    rows = {"noise": [0.2] * 5, "jpeg": [0.4] * 5}
    run = {
        "one": corrupted(P={"noise": [0.2] * 5, "jpeg": [0.4] * 5}),
        "two": corrupted(P={"noise": [0.3] * 5}),
        "other": corrupted(C={"fog": [0.1] * 5}),
        "clips": corrupted(P=rows, clips=64),
    }
    folder = {name: write_run(tmp_path, name, 0, fooled=FEW, **each) for name, each in run.items()}

    def shown(*names):
        document = compare([folder[name] for name in names])
        return markdown(document), " ".join(document["notes"])

    # Both ran noise: the mean is over that alone, and the categories stand apart.
    text, notes = shown("one", "two")
    columns, rows = table(text, "Clean, corrupted, flagged")
    assert rows["one"]["corrupted"] == "20.0"
    assert rows["two"]["corrupted"] == "30.0"
    assert "noise" in notes
    columns, rows = table(text, "Under corruptions, by suite and category")
    assert len(columns) == 5
    assert [cell for cell in rows["one"].values() if cell] == ["one", "25.0", "20.0"]
    assert not [column for column in columns[1:] if rows["one"][column] and rows["two"][column]]
    # Nothing in common, by name or by clips: no column of means.
    for names in (("one", "other"), ("one", "clips")):
        text, notes = shown(*names)
        assert "corrupted" not in table(text, "Clean, corrupted, flagged")[0]
        assert "corruptions" in notes
    assert "64 clips" in notes
    # The same corruptions: as ever.
    run = write_run(tmp_path, "same", 0, fooled=FEW, **corrupted(P=run["one"]["corruptions"]["P"]))
    document = compare([folder["one"], run])
    assert table(markdown(document), "Clean, corrupted, flagged")[1]["one"]["corrupted"] == "30.0"
    assert not document["notes"]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    first = write_run(tmp_path / "a", "own", 0, fooled=FEW)
    again = write_run(tmp_path / "b", "own", 0, fooled=MORE)
    (found,) = compare([first, again])["settings"].values()
    assert list(found["arms"]) == [f"own ({first})", f"own ({again})"]

    # Seeds of one name are one arm, unless they were trained in another way.
    def trained(seed, epochs, where):
        config = {"NAME": "own", "SEED": seed, "TRAIN": {"EPOCHS": epochs}}
        return write_run(tmp_path / where, "own", seed, fooled=FEW, config=config)

    seeds = [trained(0, 9, "c"), trained(1, 9, "c"), trained(2, 50, "c")]
    (found,) = compare(seeds)["settings"].values()
    assert [each["seeds"] for each in found["arms"].values()] == [[0, 1], [2]]
    # A folder that is given twice counts once.
    (found,) = compare([first, tmp_path / "a/../a/own/seed0"])["settings"].values()
    assert list(found["arms"]) == ["own"]


def test_clean_accuracy_of_other_views_is_named(tmp_path):
    folders = [
        write_run(tmp_path, name, 0, fooled=FEW, config={"EVALUATE": {"TEST_VIEWS": views}})
        for name, views in (("one", 3), ("two", 10))
    ]
    for folder, views in zip(folders, (3, 10), strict=True):
        results = json.loads((folder / "results.json").read_text())
        results["clean"]["views"] = views
        (folder / "results.json").write_text(json.dumps(results))
    (note,) = compare(folders)["notes"]
    assert note == "Clean accuracy is not of the same number of test views: 3 in one; 10 in two."
