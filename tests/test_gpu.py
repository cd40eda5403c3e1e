"""The main job on a GPU: as on a CPU but for rounding."""

import pytest
import torch

from tests.tiny_job import arguments, losses, results_of, stop_after
from vidcsl.cli import main

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
FEW = ("CORRUPT.NAMES", "[gaussian_noise]", "ATTACK.RUNS", "[pgd/linf]", "DATA.WORKERS", 2)


def trained(data, config, out, *words):
    words = [*arguments(data, config, out), *map(str, (*FEW, *words))]
    assert main(["train", *words]) == 0
    return losses(out), results_of(out)


def test_it_learns_as_on_a_cpu(data, config, tmp_path):
    slow, _ = trained(data, config, tmp_path / "cpu", "DEVICE", "cpu")
    quick, results = trained(data, config, tmp_path / "gpu", "DEVICE", "cuda")
    assert quick == pytest.approx(slow, rel=0.02)
    checks = results["attack_checks"]["pgd_linf"].get("checks", [])
    assert all(check["passed"] for check in checks if "batch" in check["name"])
    assert results["cost"]["peak_memory_mib"] > 0


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_stays_near(data, config, tmp_path, precision):
    exact, _ = trained(data, config, tmp_path / "exact", "DEVICE", "cuda")
    half, _ = trained(data, config, tmp_path / "half", "DEVICE", "cuda", "PRECISION", precision)
    assert half == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("method", ["acl", "rocl", "moco_v2"])
def test_a_stop_and_a_resume(data, config, tmp_path, monkeypatch, method):
    words = ("DEVICE", "cuda", "METHOD.NAME", method, "ADVERSARIAL.STEPS", 2, *FEW)
    words += ("METHOD.QUEUE", 16, "DATA.TEST_LIST", "")
    runs = {run: arguments(data, config, tmp_path / run, *words) for run in ("whole", "stopped")}
    assert main(["train", *runs["whole"]]) == 0
    stop_after(4, monkeypatch, runs["stopped"])
    assert main(["train", *runs["stopped"], "--resume"]) == 0
    assert losses(tmp_path / "stopped") == pytest.approx(losses(tmp_path / "whole"), rel=0.02)
