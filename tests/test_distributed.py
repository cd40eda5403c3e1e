import math
import os
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.methods.made import free, make_method
from tests.processes import run_in_processes
from vidcsl.distributed import DistributedContext, distributed_context
from vidcsl.errors import UserError
from vidcsl.methods import METHODS, ClipBatch
from vidcsl.methods.adversarial import Attacking
from vidcsl.methods.false_negatives import DETECTORS
from vidcsl.models.encoder import Norms
from vidcsl.models.resnet3d import r2plus1d_18
from vidcsl.training.parallel import synchronise_batchnorm
from vidcsl.training.train import MetricAccumulator

CASES = [
    *((name, {}) for name in METHODS if not issubclass(METHODS[name], Attacking)),
    *(("simclr", {"detector": name}) for name in DETECTORS if name != "none"),
    ("simclr", {"detector": "fnc", "treatment": "weight", "voters": 1}),
    ("simclr", {"detector": "clusters", "judge": "momentum"}),
    ("moco_v2", {"detector": "known_groups"}),
    ("moco_v2", {"detector": "glofnd", "judge": "momentum"}),
    ("moco_v3", {"detector": "adaptive", "voters": 1}),
]
ATTACKED = [
    ("rocl", {"detector": "labels"}),
    ("acl", {}),
    *((name, {"detector": "none"}) for name in ("advcl", "deacl", "trades")),
    *((name, {"attack": free()}) for name in ("acl", "at")),
]
STEPS, BATCH = 5, 8


def alone():
    return DistributedContext(rank=0, size=1, device=torch.device("cpu"))


class Encoder(nn.Module):
    """Small, but with a BatchNorm over space and time as a real one has."""

    feature_dim = 6

    def __init__(self, norm=True):
        super().__init__()
        self.conv = nn.Conv3d(3, 6, 2)
        self.norm = nn.BatchNorm3d(6) if norm else nn.Identity()

    def forward(self, clips):
        return self.norm(self.conv(clips)).relu().mean(dim=(2, 3, 4))


# For detectors: processes that share two cores take long to agree on the batch's statistics.
UNNORMED = {"encoder": partial(Encoder, norm=False), "norms": Norms(hidden=False, last=False)}


def shard(distributed, step, views):
    generator = torch.Generator().manual_seed(step)
    clips = torch.rand(BATCH, views, 3, 2, 4, 4, generator=generator, dtype=torch.float64)
    ids = torch.randperm(12, generator=generator)[:BATCH]  # of a list of 12 videos
    size = BATCH // distributed.size
    mine = slice(distributed.rank * size, (distributed.rank + 1) * size)
    return ClipBatch(
        *(clips[mine], (ids % 3)[mine], (ids // 2)[mine], ids[mine]), progress=step / STEPS
    )


def train(distributed, name, options):
    """Losses, shares, last gradients and the whole state after some steps."""
    rest = UNNORMED if "detector" in options else {"encoder": Encoder}
    method = make_method(name, distributed=distributed, **options, **rest).double()
    method = synchronise_batchnorm(method, distributed).train()
    replica = method if distributed.size == 1 else DistributedDataParallel(method)
    learning = [p for p in method.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(learning, lr=0.2, momentum=0.9)
    accumulator, losses = MetricAccumulator(distributed), []
    for step in range(STEPS):
        batch = shard(distributed, step, views=2 + options.get("voters", 0))
        for _ in range(method.replays):
            out = replica(batch)
            optimiser.zero_grad()
            out["loss"].backward()
            optimiser.step()
            method.after_step(batch.progress)
            accumulator.add(out)
            losses.append(float(distributed.total(out["loss"])) / distributed.size)
    found = {f"d {k}": p.grad for k, p in method.named_parameters() if p.grad is not None}
    shares = {**accumulator.averages(), **accumulator.by_class()}
    for name, share in shares.items():
        of_classes = share if isinstance(share, list) else [share]
        found[name] = torch.tensor([math.nan if one is None else one for one in of_classes])
    return losses, {**method.state_dict(), **found}


def every_case(distributed):
    return [train(distributed, *case) for case in CASES]


def assert_equal(case, result, wanted):
    (losses, tensors), (wanted_losses, wanted_tensors) = result, wanted
    assert losses == pytest.approx(wanted_losses, rel=1e-9), case
    assert set(tensors) == set(wanted_tensors)
    for name, tensor in tensors.items():
        torch.testing.assert_close(
            *(tensor, wanted_tensors[name]),
            rtol=1e-7,
            atol=1e-10,
            equal_nan=True,
            msg=lambda text, n=name: f"{case} {n}: {text}",
        )


def test_every_detector_flags_something_in_these_cases():
    for name, options in CASES:
        if "detector" in options:
            assert train(alone(), name, options)[1]["removed"].max() > 0, options


def gather_gradient(distributed):
    rows = torch.arange(3.0)[:, None] + 10 * distributed.rank
    rows.requires_grad_()
    everyone = distributed.gather(rows)
    (everyone * torch.arange(1.0, 7.0)[:, None] * (distributed.rank + 1)).sum().backward()
    return everyone.detach(), rows.grad


def chunked_step(distributed, chunk):
    """A step whose encoder takes `chunk` clips at a time; its BatchNorms do not train."""
    slim = partial(r2plus1d_18, clip_frames=2, frame_size=4, width=4)
    method = make_method("simclr", detector="known_groups", distributed=distributed, encoder=slim)
    method.encoder.chunk = chunk
    method = synchronise_batchnorm(method.double(), distributed).train()
    for module in method.encoder.backbone.modules():
        module.training = False
    replica = method if distributed.size == 1 else DistributedDataParallel(method)
    loss = replica(shard(distributed, 0, views=2))["loss"]
    loss.backward()
    gradients = {k: p.grad.clone() for k, p in method.named_parameters()}
    return float(distributed.total(loss)) / distributed.size, gradients


def attacked_cases(distributed):
    return [train(distributed, *case) for case in ATTACKED]


def in_two(distributed):
    parts = (every_case, gather_gradient, partial(chunked_step, chunk=3), attacked_cases)
    return [part(distributed) for part in parts]


@pytest.fixture(scope="module")
def two():
    return run_in_processes(in_two, 2)


@pytest.fixture(scope="module")
def processes(two):
    return {2: [cases for cases, *_ in two], 4: run_in_processes(every_case, 4)}


@pytest.mark.parametrize("size", [2, 4])
def test_several_processes_equal_one_on_the_joined_batch(processes, size):
    single = every_case(alone())
    for rank_results in processes[size]:
        for case, result, wanted in zip(CASES, rank_results, single, strict=True):
            assert_equal(case, result, wanted)


def test_attacks_in_two_processes_are_those_of_one_on_the_joined_batch(two):
    single = attacked_cases(alone())
    for *_, attacked in two:
        for case, result, wanted in zip(ATTACKED, attacked, single, strict=True):
            assert_equal(case, result, wanted)


def test_gather_keeps_order_and_sums_gradients(two):
    wanted = torch.tensor([0.0, 1, 2, 10, 11, 12])[:, None]
    for rank, (_, (everyone, gradient), *_) in enumerate(two):
        assert torch.equal(everyone, wanted)
        mine = torch.arange(1.0, 7.0)[rank * 3 : rank * 3 + 3, None]
        assert torch.equal(gradient, mine * 3)  # factor 1 from rank 0, 2 from rank 1


def test_chunks_on_two_processes_equal_one_step_on_one(two):
    wanted_loss, wanted = chunked_step(alone(), chunk=0)
    for _, _, (loss, gradients), _ in two:
        assert loss == pytest.approx(wanted_loss, rel=1e-10)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-7, atol=1e-10)


def test_a_world_of_one_changes_nothing():
    distributed, rows = alone(), F.normalize(torch.rand(3, 2))
    assert distributed.gather(rows) is rows
    assert distributed.collect("a") == ["a"]
    assert distributed.any(True)
    assert not distributed.any(False)
    module = nn.BatchNorm1d(2)
    assert synchronise_batchnorm(module, distributed) is module


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setitem(os.environ, "LOCAL_WORLD_SIZE", "2")
    with (
        pytest.raises(UserError, match="2 processes on a machine with 1 GPU"),
        distributed_context("auto"),
    ):
        pass
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="no GPU is visible"), distributed_context("cuda"):
        pass
