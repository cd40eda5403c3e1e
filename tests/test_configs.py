from pathlib import Path

import pytest

from vidcsl.config import load_config
from vidcsl.pipelines.model import build_encoder
from vidcsl.pipelines.training import check

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_builds(path):
    cfg = load_config(path)
    check(cfg)
    assert build_encoder(cfg).frame_size == cfg.MODEL.FRAME_SIZE
