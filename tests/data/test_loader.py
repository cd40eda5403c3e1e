import multiprocessing
import os
import signal
import time
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from tests.data.made_videos import video_list, write_numbered
from vidcsl.augment.pipeline import TrainAugmentation
from vidcsl.data.dataset import ClipDataset, Sample
from vidcsl.data.loader import Batch, EpochSampler, build_loader, collate
from vidcsl.data.sampling import fit_length, random_clips
from vidcsl.errors import UserError, VideoError


def sample_clips(num_frames, fps, rng, *, policy="loop"):
    indices = random_clips(num_frames, frames=3, stride=2, clips=2, rng=rng)
    return fit_length(indices, num_frames, policy=policy)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loader")
    sizes = [(64, 96), (64, 80), (80, 64)]
    return [write_numbered(folder / f"{k}.mp4", frames=12 + k, size=sizes[k % 3]) for k in range(7)]


def loader_of(
    paths,
    *,
    sampler=sample_clips,
    on_damage="replace",
    timeout=0.0,
    cropper=None,
    **options,
):
    data = ClipDataset(
        videos=video_list(paths),
        sampler=sampler,
        short_side=40,
        seed=3,
        on_damage=on_damage,
        timeout=timeout,
        cropper=cropper,
    )
    settings = {"batch_size": 2, "shuffle": True, "drop_last": True} | options
    return build_loader(data, **settings)


def same(one, other):
    tensors = ("frames", "sizes", "labels", "groups", "indices", "frame_indices")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors) and (
        (one.epoch, one.damaged) == (other.epoch, other.damaged)
    )


def all_same(some, others):
    return len(some) == len(others) and all(map(same, some, others))


def sample(size, *, index=0, value=9, damaged=()):
    frames = torch.full((2, 3, 4, *size), value, dtype=torch.uint8)
    return Sample(
        frames,
        size=size,
        label=index + 1,
        group=-1,
        index=index,
        frame_indices=torch.arange(8).view(2, 4) + index,
        epoch=6,
        damaged=damaged,
    )


def test_collate_pads_below_and_right():
    samples = [sample((5, 8), damaged=("a",)), sample((7, 4), index=1, damaged=("b", "c"))]
    batch = collate(samples)
    assert len(batch) == 2
    assert batch.frames.shape == (2, 2, 3, 4, 7, 8)
    assert batch.sizes.tolist() == [[5, 8], [7, 4]]
    for frames, (height, width) in zip(batch.frames, batch.sizes.tolist(), strict=True):
        assert (frames[..., :height, :width] == 9).all()
        assert frames.sum() == 9 * 2 * 3 * 4 * height * width
    assert batch.labels.tolist() == [1, 2]
    assert batch.groups.tolist() == [-1, -1]
    assert batch.indices.tolist() == [0, 1]
    assert batch.frame_indices[:, 1].tolist() == [[4, 5, 6, 7], [5, 6, 7, 8]]
    assert (batch.epoch, batch.damaged) == (6, ("a", "b", "c"))
    dtypes = {batch.sizes.dtype, batch.labels.dtype, batch.groups.dtype, batch.indices.dtype}
    assert dtypes == {torch.int64}


def test_a_batch_moves_whole():
    batch = collate([sample((5, 8), damaged=("a",))])
    moved = batch.to("meta")
    assert isinstance(moved, Batch)
    assert {value.device.type for value in vars(moved).values() if torch.is_tensor(value)} == {
        "meta"
    }
    assert (moved.epoch, moved.damaged) == (6, ("a",))
    assert same(batch.to("cpu"), batch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is pinned for a GPU")
def test_a_batch_can_be_pinned():
    batch = collate([sample((5, 8))])
    assert batch.pin_memory().frames.is_pinned()
    assert same(batch.pin_memory(), batch)


def keys(**options):
    return list(EpochSampler(**{"seed": 1, "shuffle": True, "drop_last": True} | options))


plans = st.tuples(st.integers(1, 60), st.integers(1, 4), st.integers(1, 5), st.integers(0, 3))


@given(plans, st.booleans(), st.booleans())
def test_ranks_share_each_global_batch_in_order(plan, shuffle, drop_last):
    length, share, distributed, epoch = plan
    batch_size = share * distributed
    if drop_last and length < batch_size:
        return
    options = {
        "length": length,
        "batch_size": batch_size,
        "epoch": epoch,
        "shuffle": shuffle,
        "drop_last": drop_last,
    }
    alone = keys(**options)
    ranks = [
        EpochSampler(seed=1, rank=r, world_size=distributed, **options) for r in range(distributed)
    ]
    shares = [list(rank) for rank in ranks]
    assert [len(rank) for rank in ranks] == [len(share) for share in shares]
    for step, whole in enumerate(alone):
        joined = [key for share in shares for key in (share[step] if step < len(share) else [])]
        assert joined == whole
    seen = sorted(index for batch in alone for _, index in batch)
    assert len(set(seen)) == len(seen)
    assert len(seen) == (length // batch_size * batch_size if drop_last else length)
    assert {key[0] for batch in alone for key in batch} <= {epoch}
    if drop_last:
        assert {len(batch) for share in shares for batch in share} == {share}


@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 8), st.booleans())
def test_a_start_in_the_middle_gives_the_rest(length, batch_size, start, drop_last):
    if drop_last and length < batch_size:
        return
    options = {"length": length, "batch_size": batch_size, "drop_last": drop_last}
    late = EpochSampler(seed=1, shuffle=True, start_step=start, **options)
    assert list(late) == keys(**options)[start:]
    assert len(late) == len(list(late))


def test_order_is_new_each_epoch_and_seed_and_even():
    order = {"length": 50, "batch_size": 50}
    first = keys(**order)
    assert first == keys(**order)
    indices = [index for _, index in first[0]]
    assert indices != sorted(indices)
    assert indices != [index for _, index in keys(**order, epoch=1)[0]]
    assert first != keys(**order, seed=2)
    assert keys(length=5, batch_size=2, shuffle=False, drop_last=False, epoch=4) == [
        [(4, 0), (4, 1)],
        [(4, 2), (4, 3)],
        [(4, 4)],
    ]


def test_impossible_plans_are_refused():
    with pytest.raises(UserError, match="a batch of 6 cannot be shared evenly by 4 processes"):
        keys(length=20, batch_size=6, world_size=4)
    with pytest.raises(UserError, match="5 videos do not fill one batch of 6"):
        keys(length=5, batch_size=6)


@pytest.fixture(scope="module")
def reference(paths):
    """Two epochs by this process alone."""
    loader = loader_of(paths)
    assert loader.steps == 3
    epochs = [list(loader.epoch(epoch)) for epoch in (0, 1)]
    assert not all_same(*epochs)
    return epochs


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_persist_and_change_nothing(paths, reference, workers):
    loader = loader_of(paths, workers=workers)
    assert all_same(list(loader.epoch(0)), reference[0])
    assert all_same(list(loader.epoch(1)), reference[1])
    assert all_same(list(loader.epoch(1, 2)), reference[1][2:])
    abandoned = loader.epoch(0)
    assert same(next(abandoned), reference[0][0])
    abandoned.close()
    assert all_same(list(loader.epoch(1)), reference[1])  # nothing of the other epoch is left
    assert list(loader.epoch(1, 3)) == []


def test_the_same_processes_serve_every_epoch(paths):
    loader, others = loader_of(paths, workers=2), set(multiprocessing.active_children())
    workers = []
    for epoch in (0, 1):
        list(loader.epoch(epoch))
        workers.append({child.pid for child in set(multiprocessing.active_children()) - others})
    assert workers[0] == workers[1]
    assert len(workers[0]) == 2


def test_ranks_together_see_what_one_process_sees(paths, reference):
    ranks = [list(loader_of(paths, rank=r, world_size=2).epoch(1)) for r in (0, 1)]
    for whole, *parts in zip(reference[1], *ranks, strict=True):
        assert torch.cat([part.indices for part in parts]).equal(whole.indices)
        for row, part in enumerate(parts):
            _, *_, height, width = part.frames.shape
            assert torch.equal(part.frames[0], whole.frames[row, ..., :height, :width])


@pytest.mark.parametrize("workers", [1, 2])
def test_crops_by_the_decoder_are_the_same_bytes_everywhere(paths, workers):
    """Whatever the workers and the ranks, and from the middle of an epoch on."""
    crops = {"cropper": TrainAugmentation(size=16)}
    alone = list(loader_of(paths, **crops).epoch(4))
    assert alone[0].frames.shape == (2, 2, 3, 3, 16, 16)
    assert all_same(list(loader_of(paths, workers=workers, **crops).epoch(4)), alone)
    assert all_same(list(loader_of(paths, workers=workers, **crops).epoch(4, 2)), alone[2:])
    ranks = [
        list(loader_of(paths, workers=workers, rank=r, world_size=2, **crops).epoch(4))
        for r in (0, 1)
    ]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert torch.cat([part.frames for part in parts]).equal(whole.frames)


def test_loading_leaves_the_global_generators_alone(paths):
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    list(loader_of(paths, workers=1).epoch(0))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_is_reported_and_errors_stay_one_line(paths, tmp_path, workers):
    missing = tmp_path / "missing.mp4"
    some = loader_of([*paths[:3], missing], workers=workers).epoch(0)
    assert {path for batch in some for path in batch.damaged} == {str(missing)}
    with pytest.raises(VideoError) as caught:
        list(loader_of([*paths[:3], missing], workers=workers, on_damage="error").epoch(0))
    assert str(caught.value) == f"cannot read video {missing}: there is no such file"
    strict = partial(sample_clips, policy="error")
    short = write_numbered(tmp_path / "short.mp4", frames=3)
    with pytest.raises(UserError, match=r"DATA\.SHORT_VIDEO") as caught:
        list(loader_of([*paths[:3], short], workers=workers, sampler=strict).epoch(0))
    assert "\n" not in str(caught.value)


@pytest.fixture
def impatient(monkeypatch):
    """A dead worker is noticed at once, not after five seconds."""
    method = _MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(method, "__defaults__", (0.2,))


class Killer:
    """A sampler that ends its process in videos of one length, as often as it is told to."""

    def __init__(self, tmp_path, *, times, how, length=14):
        self.notes, self.times, self.how, self.length = tmp_path, times, how, length

    def __call__(self, num_frames, fps, rng):
        done = len(list(self.notes.glob("death*")))
        if num_frames == self.length and done < self.times:
            (self.notes / f"death{done}").touch()
            self.how()
        return sample_clips(num_frames, fps, rng)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    """As a library does that never comes back: no signal of Python's is heard."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    time.sleep(60)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_costs_no_batch(paths, reference, tmp_path, impatient, workers):
    loader = loader_of(paths, workers=workers, sampler=Killer(tmp_path, times=1, how=die))
    assert all_same(list(loader.epoch(0)), reference[0])
    assert all_same(list(loader.epoch(1)), reference[1])
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("how", "cause"), [(die, "SIGKILL"), (hang, "it took too long")])
def test_a_video_that_kills_twice_is_replaced_and_named(paths, tmp_path, impatient, how, cause):
    sampler = Killer(tmp_path, times=9, how=how)
    loader = loader_of(paths, workers=1, sampler=sampler, timeout=0.3, batch_size=7)
    (batch,) = loader.epoch(0)
    assert batch.damaged == (str(paths[2]),)
    assert loader.dataset.given_up == {2: f"the process that reads it dies ({cause})"}
    assert len(list(tmp_path.iterdir())) == 2
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL


def test_workers_that_always_die_are_an_error(paths, tmp_path, impatient, monkeypatch):
    monkeypatch.setattr("vidcsl.data.loader.MOST_DEATHS", 0)
    loader = loader_of(paths, workers=1, sampler=Killer(tmp_path, times=99, how=die), batch_size=7)
    with pytest.raises(UserError, match="workers died 1 times at one step"):
        list(loader.epoch(0))


def sleep_in_the_third(num_frames, fps, rng):
    if num_frames == 14:
        time.sleep(20)
    return sample_clips(num_frames, fps, rng)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_slow_video_is_given_up(paths, workers):
    options = {"sampler": sleep_in_the_third, "timeout": 0.5, "batch_size": 7}
    (batch,) = loader_of(paths, workers=workers, **options).epoch(0)
    assert batch.damaged == (str(paths[2]),)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_videos_can_be_left_out(paths, tmp_path, workers):
    missing = [tmp_path / f"missing{k}.mp4" for k in range(3)]
    listed = [paths[0], *missing, paths[1], paths[2]]
    options = {"shuffle": False, "drop_last": False, "on_damage": "leave_out"}
    batches = list(loader_of(listed, workers=workers, **options).epoch(0))
    # Of the three batches of two, one lost a video and one both.
    assert [batch.indices.tolist() for batch in batches] == [[0], [4, 5]]
    assert [batch.damaged for batch in batches] == [(), ()]
