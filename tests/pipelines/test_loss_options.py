from pathlib import Path

import pytest
import torch

from vidcsl.config import load_config
from vidcsl.data.lists import Video, VideoList
from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.methods import ClipBatch
from vidcsl.methods.losses import LOSSES, Pairs
from vidcsl.options import OPTIONS
from vidcsl.pipelines.method import build_loss, build_method


def config(tmp_path, *overrides):
    path = tmp_path / "config.yaml"
    path.write_text("MODEL: {WIDTH: 4, FRAME_SIZE: 16}\nDATA: {FRAMES: 4}\n")
    return load_config(path, list(overrides))


def test_every_loss_can_be_named():
    assert OPTIONS["LOSS.NAME"].choices == tuple(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_options_reach_the_loss(tmp_path, name):
    similarities, itself = torch.rand(6, 6, generator=torch.Generator()), torch.eye(6).bool()
    pairs = Pairs(torch.roll(itself, 1, dims=1), itself)
    options = {
        "debiased": {"LOSS.PRIOR": "0.3"},
        "hard_negative": {"LOSS.PRIOR": "0.3", "LOSS.CONCENTRATION": "2"},
        "rince": {"LOSS.ORDER": "0.3", "LOSS.DENSITY": "0.5"},
    }
    words = ["LOSS.NAME", name]
    before = build_loss(config(tmp_path, *words))(similarities, pairs)[0]
    for key, value in {"METHOD.TEMPERATURE": "0.3", **options.get(name, {})}.items():
        changed = build_loss(config(tmp_path, *words, key, value))(similarities, pairs)[0]
        assert not torch.allclose(before, changed), key


def test_rince_beyond_float32_is_an_error(tmp_path):
    words = ("LOSS.NAME", "rince", "LOSS.ORDER", "1", "METHOD.TEMPERATURE", "0.01")
    with pytest.raises(UserError, match=r"raise METHOD\.TEMPERATURE or lower LOSS\.ORDER"):
        build_loss(config(tmp_path, *words))


def test_chunks_and_loss_reach_the_method(tmp_path):
    cfg = config(tmp_path, "TRAIN.CHUNK", "2", "LOSS.NAME", "hard_negative")
    videos = VideoList((Video(Path("a.mp4")),), (), "list.csv")
    distributed = DistributedContext(rank=0, size=1, device=torch.device("cpu"))
    method = build_method(cfg, videos, distributed)
    assert method.encoder.chunk == 2 * cfg.DATA.CLIPS
    ids = torch.arange(4)
    clips = torch.rand(4, 2, 3, 4, 16, 16, generator=torch.Generator())
    out = method.train()(ClipBatch(clips, torch.full((4,), -1), ids, ids))
    out["loss"].backward()
    gradients = [p.grad for p in method.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
