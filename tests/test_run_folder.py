import json

import pytest
import torch

from vidcsl.errors import UserError
from vidcsl.run_folder import RunFolder, describe_environment


def test_results_merge_by_section_and_survive(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    assert folder.read_results() == {}
    folder.update_results({"clean": {"knn_top1": 0.5}, "seed": 1})
    folder.update_results({"clean": {"knn_top1": 0.6}})
    assert folder.read_results() == {"clean": {"knn_top1": 0.6}, "seed": 1}
    kept = {folder.results.name, folder.checkpoints.name, folder.artifacts.name}
    assert {path.name for path in folder.path.iterdir()} == kept
    folder.results.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        folder.read_results()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to the output folder"):
        RunFolder(tmp_path / "file" / "run").create()


def test_environment_is_plain_data_with_versions():
    described = describe_environment(torch.device("cpu"))
    assert json.loads(json.dumps(described)) == described
    assert described["versions"]["torch"]
    assert described["cpu_count"] >= 1
    assert described["device"] not in ("", "cpu")
