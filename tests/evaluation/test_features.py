import torch
import torch.nn.functional as F

from tests.processes import run_in_processes
from vidcsl.data.loader import Batch
from vidcsl.distributed import DistributedContext
from vidcsl.evaluation.features import Features, extract_features


def batch(indices):
    ids = torch.tensor(indices)
    frames = ids.view(-1, 1, 1, 1, 1, 1).expand(-1, 2, 3, 1, 4, 4).to(torch.uint8)
    sizes = torch.full((len(ids), 2), 4)
    shown = torch.zeros(len(ids), 2, 1, dtype=torch.long)
    numbers = {"labels": ids % 3, "groups": ids // 2, "indices": ids, "frame_indices": shown}
    return Batch(frames, sizes, **numbers, epoch=0)


def crop(frames, sizes):
    return frames.float()


class Mean(torch.nn.Module):
    def forward(self, clips):
        return torch.stack([clips.mean((1, 2, 3, 4)), torch.ones(len(clips))], dim=1)


def extract(distributed):
    shares = [[[4, 1], [0]], [[3, 2], [1]]]  # video 1 is seen twice: it stood in for another
    mine = [*shares[0], *shares[1]] if distributed.size == 1 else shares[distributed.rank]
    found = extract_features(
        Mean(), map(batch, mine), crop=crop, distributed=distributed, title="features", total=6
    )
    return found.values, found.labels, found.groups, found.indices


def test_in_list_order_once_each_however_shared_out():
    single = extract(DistributedContext(rank=0, size=1, device=torch.device("cpu")))
    values, labels, groups, indices = single
    assert indices.tolist() == [0, 1, 2, 3, 4]
    assert values.shape == (5, 2, 2)
    assert values[:, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert labels.tolist() == [0, 1, 2, 0, 1]
    assert groups.tolist() == [0, 0, 1, 1, 2]
    for found in run_in_processes(extract, 2):
        assert all(torch.equal(a, b) for a, b in zip(found, single, strict=True))


def test_pooled_is_the_unit_mean_of_unit_views():
    values = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(4)
    pooled = Features(values, ids, ids, ids).pooled()
    for row, views in zip(pooled, values, strict=True):
        wanted = sum(view / view.norm() for view in views)
        torch.testing.assert_close(row, wanted / wanted.norm())
        assert torch.isclose(F.normalize(row, dim=0).norm(), row.norm())
