import json
from pathlib import Path

import pytest

from vidcsl.errors import UserError
from vidcsl.report import summary as files
from vidcsl.report.page import write_report


def test_of_repeated_steps_the_last_counts_and_cut_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    steps = [(0, 3.0), (1, 2.0), (2, 9.0), (1, 1.5), (2, 1.0)]
    lines = [json.dumps({"kind": "train", "epoch": 0, "step": s, "loss": v}) for s, v in steps]
    path.write_text("\n".join([*lines, lines[0][:20]]))
    read, unreadable = files.read_log(path)
    assert [line["loss"] for line in read] == [3.0, 1.5, 1.0]
    assert unreadable == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        ("{", "damaged"),
        ("[1]", "JSON object"),
        ('{"clean": 3}', "section clean"),
        ('{"attacks": {"pgd_linf": 0.1}}', "section attacks"),
        ('{"corruptions": {"P": {"jpeg": 0.1}}}', "section corruptions"),
        ('{"corruptions": {"scores": 0.1}}', "section corruptions"),
        ('{"geometry": {"histogram": [1]}}', "section geometry"),
    ],
)
def test_wrong_results_are_one_clear_line(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError) as caught:
        write_report(tmp_path)
    assert words in str(caught.value)
    assert "results.json" in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_flagged_pairs_are_found_under_the_name_of_earlier_versions(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(
        '{"kind": "train", "epoch": 0, "step": 1, "removed": 0.1}\n'
        '{"kind": "train", "epoch": 0, "step": 2, "removed": 0.1, "flagged": 0.2}\n'
    )
    lines, _ = files.read_log(tmp_path / "log.jsonl")
    assert [line["flagged"] for line in lines] == [0.1, 0.2]
    found = {"removed": 0.3, "by_class": {"Lunges": {"removed": 0.4}}}
    (tmp_path / "results.json").write_text(json.dumps({"false_negatives": found}))
    read = files.read_results(tmp_path / "results.json")["false_negatives"]
    assert (read["flagged"], read["by_class"]["Lunges"]["flagged"]) == (0.3, 0.4)
