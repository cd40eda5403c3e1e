import json

from tests.report.run_folder import results
from vidcsl.report.summary import read_results, warnings


def told(tmp_path, damaged=(), **changes):
    content = results()
    for section, values in changes.items():
        content[section] = {**content[section], **values}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    return warnings(read_results(path), damaged=damaged)


def test_failed_checks_come_first(tmp_path):
    first, *rest = told(tmp_path)
    assert first.startswith("PGD L∞: not so, “more steps never help the model”")
    assert rest == []


def test_few_videos_missing_ones_and_chance(tmp_path):
    found = told(
        tmp_path,
        damaged=["a.mp4"],
        data={"test_videos": 12, "left_out": ["b.mp4", "c.mp4"]},
        clean={"linear_top1": 0.25},
        attack_checks={"pgd_linf": {"checks": []}},
    )
    assert [text.split()[0] for text in found] == ["Only", "1", "2", "The"]
    assert "25.0" in found[-1]
    assert "20.0" in found[-1]
