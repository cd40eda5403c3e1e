import json

import pytest

from vidcsl.errors import UserError
from vidcsl.report.compare import compare, gap_closed


def write(root, name, seed, *, linear, robust, precision=None):
    folder = root / f"{name}{seed}"
    folder.mkdir()
    removal = {} if precision is None else {"removed": 0.1, "precision": precision}
    results = {
        "name": name,
        "seed": seed,
        "clean": {"linear_top1": linear, "knn_top1": 0.25},
        "attacks": {"pgd_linf": {"1/255": robust}},
        "corruptions": {"P": {"jpeg": [0.2] * 5}, "C": {"fog": [0.4] * 5}},
        "false_negatives": removal,
    }
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def cells(table, name):
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {name} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_means_spreads_and_the_gap(tmp_path):
    folders = [
        write(tmp_path, "plain", 0, linear=0.3, robust=0.10),
        write(tmp_path, "plain", 1, linear=0.4, robust=0.20),
        write(tmp_path, "removal", 0, linear=0.4, robust=0.25, precision=0.5),
        write(tmp_path, "supervised", 0, linear=0.5, robust=0.35),
    ]
    table = compare(folders, baseline="plain", reference="supervised")
    assert cells(table, "plain") == [
        *("plain", "2", "35.0 ± 7.1", "25.0 ± 0.0", "none", "15.0 ± 7.1", "30.0 ± 0.0", "")
    ]
    assert cells(table, "removal")[4:] == ["10.0, 50.0", "25.0", "30.0", "50"]
    swapped = compare(folders, baseline="supervised", reference="plain")
    assert cells(swapped, "removal")[-1] == "undefined"


def test_gap_is_undefined_without_a_gap():
    assert gap_closed(0.3, baseline=0.1, reference=0.5) == pytest.approx(0.5)
    assert gap_closed(0.3, baseline=0.5, reference=0.5) is None


def test_an_unknown_name_is_an_error(tmp_path):
    folders = [write(tmp_path, "plain", 0, linear=0.3, robust=0.1)]
    with pytest.raises(UserError, match="no run is named other; there are plain"):
        compare(folders, baseline="plain", reference="other")
