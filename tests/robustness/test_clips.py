import torch
from torch import nn

from vidcsl.augment.pipeline import EvalCrop
from vidcsl.data.loader import Batch
from vidcsl.robustness.targets import (
    cropped_clips,
    decoded_frames,
    mean_direction,
    mean_probability,
)


def batch():
    """Four videos, three views of two frames: two overlap alike, one does not, one is smaller."""
    generator = torch.Generator().manual_seed(0)
    files = torch.randint(256, (4, 3, 20, 8, 12), dtype=torch.uint8, generator=generator)
    files[3, ..., 10:] = 0  # padded from 8 x 10
    shown = torch.tensor(
        [
            [[0, 2], [2, 4], [4, 6]],
            [[1, 3], [3, 5], [5, 7]],
            [[0, 2], [8, 10], [16, 18]],
            [[0, 2], [2, 4], [4, 6]],
        ]
    )
    views = torch.stack(
        [file[:, at].transpose(0, 1) for file, at in zip(files, shown, strict=True)]
    )
    sizes = torch.tensor([[8, 12]] * 3 + [[8, 10]])
    numbers = {"labels": torch.arange(4), "groups": torch.arange(4), "indices": torch.arange(4)}
    return Batch(views, sizes, **numbers, frame_indices=shown, epoch=0)


class Mean(nn.Module):
    def forward(self, clips):
        return torch.stack([clips.mean((1, 2, 3, 4)), clips[:, 0, 0].std((1, 2))], dim=1)


def ask(pixels, crop, mean):
    """Answers by video, and how many frames each video has."""
    answers, lengths = {}, {}
    seeds, videos = [70, 71, 72, 73], [10, 11, 12, 13]
    for clips in pixels(batch(), crop, seeds=seeds, videos=videos):
        assert clips.seeds == [60 + video for video in clips.videos]
        assert clips.labels.tolist() == [video - 10 for video in clips.videos]
        logits = clips.look(Mean(), mean)(clips.clips)
        answers |= dict(zip(clips.videos, logits, strict=True))
        lengths |= dict.fromkeys(clips.videos, clips.clips.shape[2])
    return torch.stack([answers[video] for video in videos]), lengths


def test_decoded_frames_are_answered_like_the_cropped_views():
    for crops in (1, 3):
        crop, whole = EvalCrop(size=6, crops=crops), batch()
        clips = crop(whole.frames.float() / 255, whole.sizes)  # uint8 would be rounded again
        views = Mean()(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
        for mean in (mean_probability, mean_direction):
            answers, lengths = ask(decoded_frames, crop, mean)
            torch.testing.assert_close(answers, mean(views))
        assert lengths == {10: 4, 11: 4, 12: 6, 13: 4}  # a shared frame is there once


def test_videos_that_overlap_alike_come_together():
    groups = decoded_frames(batch(), EvalCrop(size=6), seeds=range(4), videos=range(4))
    assert sorted(clips.videos for clips in groups) == [[0, 1], [2], [3]]


def test_cropped_clips_are_the_first_views():
    crop, whole = EvalCrop(size=6), batch()
    answers, lengths = ask(cropped_clips, crop, mean_probability)
    assert torch.equal(answers, Mean()(crop(whole.frames, whole.sizes)[:, 0]))
    assert set(lengths.values()) == {2}
