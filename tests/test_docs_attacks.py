"""The examples of docs/attacks.md run."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from vidcsl.cli import command_parser
from vidcsl.config import load_config
from vidcsl.pipelines.targets import attack_specs
from vidcsl.pipelines.training import check

ATTACKS = (Path(__file__).parents[1] / "docs" / "attacks.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", ATTACKS, re.S)


@pytest.mark.filterwarnings("error::UserWarning")
def test_the_example_of_targets_runs():
    (code,) = [code for code in blocks("python") if "OverViews" in code]
    encoder = nn.Sequential(
        nn.Conv3d(3, 8, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool3d(1), nn.Flatten()
    ).eval()
    names = {"torch": torch, "nn": nn, "encoder": encoder, "labels": torch.arange(4)}
    names |= {"model": nn.Sequential(encoder, nn.Linear(8, 10)).eval()}
    names |= {"clips": torch.rand(4, 3, 8, 32, 32, generator=torch.Generator().manual_seed(0))}
    exec(code, names)
    assert names["attacked_video"].shape == (1, 3, 6, 36, 48)  # the frames that the views read
    assert names["attacked"].shape == names["clips"].shape


@pytest.mark.parametrize("text", blocks("yaml"))
def test_the_configs_build(text, tmp_path):
    path = tmp_path / "attacks.yaml"
    path.write_text(text)
    cfg = load_config(path)
    check(cfg)
    assert [attack.spec for attack in attack_specs(cfg)] == cfg.ATTACK.RUNS


@pytest.mark.parametrize("command", re.findall(r"^vidcsl (.*)$", ATTACKS, re.M))
def test_the_commands_are_understood(command):
    assert callable(command_parser(shlex.split(command)[0]).parse_args(shlex.split(command)).run)
