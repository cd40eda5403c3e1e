import os
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.engine.worlds import run_in_world
from vidcsl.engine.batchnorm import synchronise
from vidcsl.engine.distributed import World, start
from vidcsl.errors import UserError
from vidcsl.models.heads import projector
from vidcsl.models.r2plus1d import r2plus1d_18
from vidcsl.objectives import CONTRASTIVE, ClipBatch
from vidcsl.objectives.false_negatives import DETECTORS, TREATMENTS
from vidcsl.objectives.losses import nt_xent
from vidcsl.objectives.supervised import Supervised

METHODS = [
    ("simclr", "none", "eliminate"),
    ("simclr", "known_groups", "eliminate"),
    ("simclr", "adaptive", "eliminate"),
    ("simclr", "labels", "attract"),
    ("supcon", "none", "eliminate"),
    ("supervised", "none", "eliminate"),
]


def alone():
    return World(rank=0, size=1, device=torch.device("cpu"))


def build(world, name, detector, treatment):
    torch.manual_seed(0)
    encoder = r2plus1d_18(clip_frames=4, frame_size=16, width=4)
    if name == "supervised":
        method = Supervised(encoder, feature_dim=encoder.feature_dim, classes=3)
    else:
        method = CONTRASTIVE[name](
            encoder,
            projector(in_dim=encoder.feature_dim, hidden_dim=16, out_dim=8, layers=2),
            loss=partial(nt_xent, temperature=0.2),
            detector=DETECTORS[detector](),
            treatment=TREATMENTS[treatment],
            world=world,
        )
    return synchronise(method.double(), world).train()


def shard(world):
    generator = torch.Generator().manual_seed(1)
    clips = torch.rand(8, 2, 3, 4, 16, 16, generator=generator, dtype=torch.float64)
    ids = torch.arange(8)
    size = 8 // world.size
    mine = slice(world.rank * size, (world.rank + 1) * size)
    return ClipBatch(clips[mine], (ids % 3)[mine], (ids // 2)[mine], ids[mine], progress=1.0)


def one_step(world, name, detector, treatment):
    method = build(world, name, detector, treatment)
    replica = method if world.size == 1 else DistributedDataParallel(method)
    out = replica(shard(world))
    out["loss"].backward()
    loss = float(world.total(out["loss"])) / world.size
    pairs = {k: float(world.total(v)) for k, v in out.items() if k.endswith("_pairs")}
    gradients = {k: p.grad.clone() for k, p in method.named_parameters() if p.grad is not None}
    buffers = {k: b.clone() for k, b in method.named_buffers()}
    return loss, pairs, {**gradients, **buffers}


def every_method(world):
    return [one_step(world, *method) for method in METHODS]


@pytest.mark.parametrize("size", [2, 4])
def test_several_processes_equal_one_on_the_joined_batch(size):
    single = every_method(alone())
    for rank_results in run_in_world(every_method, size):
        for (loss, pairs, tensors), (wanted, wanted_pairs, wanted_tensors) in zip(
            rank_results, single, strict=True
        ):
            assert loss == pytest.approx(wanted, rel=1e-10)
            assert pairs == wanted_pairs
            assert set(tensors) == set(wanted_tensors)
            for name, tensor in tensors.items():
                torch.testing.assert_close(
                    tensor, wanted_tensors[name], rtol=1e-7, atol=1e-10, msg=lambda m, n=name: n + m
                )


def gather_gradient(world):
    rows = torch.arange(3.0)[:, None] + 10 * world.rank
    rows.requires_grad_()
    everyone = world.gather(rows)
    (everyone * torch.arange(1.0, 7.0)[:, None] * (world.rank + 1)).sum().backward()
    return everyone.detach(), rows.grad


def chunked_step(world, chunk):
    """A step whose encoder takes `chunk` clips at a time; its BatchNorms do not train."""
    torch.manual_seed(0)
    encoder = r2plus1d_18(clip_frames=4, frame_size=16, width=4)
    encoder.chunk = chunk
    method = CONTRASTIVE["simclr"](
        encoder,
        projector(in_dim=encoder.feature_dim, hidden_dim=16, out_dim=8, layers=2),
        loss=partial(nt_xent, temperature=0.2),
        detector=DETECTORS["known_groups"](),
        treatment=TREATMENTS["eliminate"],
        world=world,
    )
    method = synchronise(method.double(), world).train()
    for module in encoder.backbone.modules():
        module.training = False
    replica = method if world.size == 1 else DistributedDataParallel(method)
    loss = replica(shard(world))["loss"]
    loss.backward()
    gradients = {k: p.grad.clone() for k, p in method.named_parameters()}
    return float(world.total(loss)) / world.size, gradients


def in_two(world):
    return gather_gradient(world), chunked_step(world, chunk=3)


@pytest.fixture(scope="module")
def two():
    return run_in_world(in_two, 2)


def test_gather_keeps_order_and_sums_gradients(two):
    wanted = torch.tensor([0.0, 1, 2, 10, 11, 12])[:, None]
    for rank, ((everyone, gradient), _) in enumerate(two):
        assert torch.equal(everyone, wanted)
        mine = torch.arange(1.0, 7.0)[rank * 3 : rank * 3 + 3, None]
        assert torch.equal(gradient, mine * 3)  # factor 1 from rank 0, 2 from rank 1


def test_chunks_on_two_processes_equal_one_step_on_one(two):
    wanted_loss, wanted = chunked_step(alone(), chunk=0)
    for _, (loss, gradients) in two:
        assert loss == pytest.approx(wanted_loss, rel=1e-10)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-7, atol=1e-10)


def test_a_world_of_one_changes_nothing():
    world, rows = alone(), F.normalize(torch.rand(3, 2))
    assert world.gather(rows) is rows
    assert world.collect("a") == ["a"]
    assert world.any(True)
    assert not world.any(False)
    module = nn.BatchNorm1d(2)
    assert synchronise(module, world) is module


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setitem(os.environ, "LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes on a machine with 1 GPU"), start("auto"):
        pass
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="no GPU is visible"), start("cuda"):
        pass
