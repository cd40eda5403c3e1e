from pathlib import Path

import pytest

from vidcsl import builders
from vidcsl.config import load_config

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_builds(path):
    cfg = load_config(path)
    builders.check(cfg)
    assert builders.build_encoder(cfg).frame_size == cfg.MODEL.FRAME_SIZE
