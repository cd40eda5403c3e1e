from functools import partial

import numpy as np
import pytest
import torch

from tests.data.made_videos import numbers, video_list, write_numbered
from vidcsl.augment.pipeline import TrainAugmentation
from vidcsl.augment.transforms import RandomColour
from vidcsl.data import dataset as dataset_module
from vidcsl.data.dataset import MAX_ATTEMPTS, ClipDataset
from vidcsl.data.loader import collate
from vidcsl.data.sampling import fit_length, random_clips
from vidcsl.errors import UserError, VideoError
from vidcsl.seeding import numpy_generator, sample_seed


def sample_clips(num_frames, fps, rng, *, clips=2, frames=3, stride=2, policy="loop"):
    indices = random_clips(num_frames, frames=frames, stride=stride, clips=clips, rng=rng)
    return fit_length(indices, num_frames, policy=policy)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    return [write_numbered(folder / f"{k}.mp4", frames=20 + k) for k in range(4)]


@pytest.fixture
def damaged(tmp_path):
    paths = [tmp_path / f"damaged{k}.mp4" for k in range(3)]
    for path in paths:
        path.write_bytes(b"not a video" * 100)
    return paths


def make(paths, **options):
    settings = {"sampler": sample_clips, "short_side": 32, "seed": 7} | options
    return ClipDataset(videos=video_list(paths), **settings)


def frame_numbers(sample):
    return [numbers(view.permute(1, 2, 3, 0).numpy()) for view in sample.frames]


def test_a_sample_is_the_sampled_frames_with_their_labels(paths):
    sample = make(paths)[(5, 2)]
    assert sample.frames.shape == (2, 3, 3, 32, 48)
    assert sample.frames.dtype == torch.uint8
    assert sample.frames.is_contiguous()
    assert sample.size == (32, 48)
    assert (sample.label, sample.group, sample.index, sample.epoch) == (2, 102, 2, 5)
    assert sample.damaged == ()
    assert sample.reader == "pyav"
    expected = sample_clips(22, 25.0, numpy_generator(7, 5, 2, "train/sampling"))
    assert frame_numbers(sample) == sample.frame_indices.tolist() == expected.tolist()


def test_views_depend_on_seed_epoch_index_and_purpose_alone(paths):
    def views(key=(0, 1), **options):
        return frame_numbers(make(paths, **options)[key])

    assert len(make(paths)) == 4
    assert views() == views()
    changed = [views(key=(1, 1)), views(key=(0, 2)), views(seed=8), views(purpose="test")]
    assert all(other != views() for other in changed)


def test_all_views_come_from_one_opening_and_one_read(paths, monkeypatch):
    calls = []
    real = dataset_module.open_reader

    def spied(*args, **kwargs):
        reader = real(*args, **kwargs)
        read = reader.read
        reader.read = lambda indices: calls.append(len(indices)) or read(indices)
        return reader

    monkeypatch.setattr(dataset_module, "open_reader", spied)
    make(paths, sampler=partial(sample_clips, clips=4))[(0, 0)]
    assert calls == [12]


def test_a_window_is_decoded_with_its_clips_in_one_read(paths, monkeypatch):
    """All frames from the first to the last; the clips are the same as without."""
    calls = []
    real = dataset_module.open_reader

    def spied(*args, **kwargs):
        reader = real(*args, **kwargs)
        read = reader.read
        reader.read = lambda indices: calls.append(len(indices)) or read(indices)
        return reader

    alone = make(paths)[(0, 1)]
    monkeypatch.setattr(dataset_module, "open_reader", spied)
    sample = make(paths, windows=True)[(0, 1)]
    first, last = int(alone.frame_indices.min()), int(alone.frame_indices.max())
    assert calls == [last - first + 1]
    assert torch.equal(sample.frames, alone.frames)
    assert sample.frames.is_contiguous()
    assert numbers(sample.window.permute(1, 2, 3, 0).numpy()) == list(range(first, last + 1))
    assert sample.rate == 25.0
    assert alone.window is None
    batch = collate([sample, sample])
    assert [window.shape for window in batch.windows] == 2 * [sample.window.shape]
    assert batch.rates == (25.0, 25.0)
    assert collate([alone]).windows == ()


def test_a_damaged_video_is_replaced_and_reported(paths, damaged):
    data = make([*paths, damaged[0]])
    stand_ins = [data[(epoch, 4)] for epoch in range(12)]
    for sample in stand_ins:
        assert sample.damaged == (str(damaged[0]),)
        assert sample.index < 4
        assert (sample.label, sample.group) == (sample.index, 100 + sample.index)
    assert len({sample.index for sample in stand_ins}) > 1
    again = make([*paths, damaged[0]])[(3, 4)]
    assert again.index == stand_ins[3].index
    assert torch.equal(again.frames, stand_ins[3].frames)


def test_several_damaged_videos_are_all_reported(paths, damaged):
    data = make([*damaged, paths[0]])
    for epoch in range(6):
        sample = data[(epoch, 0)]
        assert sample.index == 3
        assert sample.damaged[0] == str(damaged[0])
        assert len(set(sample.damaged)) == len(sample.damaged)


def test_it_gives_up_when_nothing_can_be_read(damaged, tmp_path):
    with pytest.raises(UserError, match=r"3 videos in a row of made\.csv.*damaged1\.mp4"):
        make(damaged)[(0, 1)]
    many = [tmp_path / f"missing{k}.mp4" for k in range(40)]
    with pytest.raises(UserError, match=f"{MAX_ATTEMPTS} videos in a row"):
        make(many)[(0, 1)]


def test_on_damage_error_raises(paths, damaged):
    with pytest.raises(VideoError, match=r"damaged0\.mp4"):
        make([*paths, damaged[0]], on_damage="error")[(0, 4)]


def test_a_frame_that_cannot_be_decoded_counts_as_damage(paths, monkeypatch):
    def beyond_the_first_video(num_frames, fps, rng):
        return np.array([[0, 20]])  # the shortest video has frames 0 to 19

    sample = make(paths, sampler=beyond_the_first_video)[(0, 0)]
    assert sample.damaged == (str(paths[0]),)
    assert sample.index > 0


def test_short_videos(paths):
    long_clips = partial(sample_clips, frames=16, clips=1)
    assert frame_numbers(make(paths, sampler=long_clips)[(0, 0)])[0][9:12] == [18, 0, 2]
    with pytest.raises(UserError, match=rf"{paths[0]}: .*DATA\.SHORT_VIDEO") as caught:
        make(paths, sampler=partial(long_clips, policy="error"))[(0, 0)]
    assert not isinstance(caught.value, VideoError)  # a setting, not damage: nothing is replaced


@pytest.mark.parametrize("cache", [False, True])
def test_crops_by_the_decoder_are_those_of_the_device(tmp_path, paths, cache):
    """The same boxes: augmentation draws them from the seed of the sample."""
    augment = {"size": 24, "colour": RandomColour(jitter_probability=0.0, gray_probability=0.0)}
    cut = TrainAugmentation(**augment, cropped=True)
    options = {"cropper": cut, "short_side": 64}
    sample = make(paths, **options, cache=tmp_path if cache else None)[(5, 2)]
    whole = make(paths, short_side=64)[(5, 2)]
    assert sample.size == (24, 24)
    assert sample.frames.shape == (2, 3, 3, 24, 24)
    seed = torch.tensor([sample_seed(7, 5, 2)])
    ours = cut(sample.frames[None], torch.tensor([[24, 24]]), seed)
    theirs = TrainAugmentation(**augment)(whole.frames[None], torch.tensor([whole.size]), seed)
    assert (ours - theirs).abs().mean() < 0.02
