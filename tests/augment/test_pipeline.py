import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vidcsl.augment.pipeline import EvalCrop, TrainAugmentation
from vidcsl.augment.transforms import (
    RandomColour,
    RandomResizedCrop,
    clip_draws,
    crop_resize,
    random_resized_boxes,
    three_boxes,
)
from vidcsl.errors import UserError
from vidcsl.seeding import seed_of

UNCHANGED = {"jitter_probability": 0.0, "gray_probability": 0.0}
PLAIN = {"crop": RandomResizedCrop(flip=0.0), "colour": RandomColour(**UNCHANGED)}
STRONG = RandomColour(
    jitter_probability=1.0,
    gray_probability=0.5,
    blur_probability=0.5,
    solarise_probability=0.5,
    motion_probability=0.5,
)


def video(samples: int, views: int = 2, frames: int = 3, sides: tuple = (40, 52)) -> Tensor:
    generator = torch.Generator().manual_seed(samples)
    shape = (samples, views, 3, frames, *sides)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def full_sizes(frames: Tensor) -> Tensor:
    return torch.tensor([frames.shape[-2:]] * len(frames))


@settings(max_examples=15)
@given(
    samples=st.integers(1, 3),
    views=st.integers(1, 3),
    length=st.integers(1, 4),
    size=st.integers(2, 40),
    seed=st.integers(0, 2**62),
)
def test_clips_have_the_documented_shape_type_and_range(
    samples: int, views: int, length: int, size: int, seed: int
) -> None:
    frames = video(samples, views, length)
    seeds = torch.arange(samples) + seed
    clips = TrainAugmentation(size=size, colour=STRONG)(frames, full_sizes(frames), seeds)
    assert clips.shape == (samples, views, 3, length, size, size)
    assert clips.dtype == torch.float32
    assert clips.min() >= 0
    assert clips.max() <= 1


def test_identical_frames_stay_identical() -> None:
    frames = video(12, frames=1).expand(-1, -1, -1, 4, -1, -1)
    clips = TrainAugmentation(size=24, colour=STRONG)(frames, full_sizes(frames), torch.arange(12))
    assert torch.allclose(clips, clips[:, :, :, :1].expand_as(clips), atol=1e-6)


def test_a_sample_gets_the_same_augmentation_in_any_batch() -> None:
    frames, seeds = video(6), torch.tensor([5, 9, 2**62, 0, 1, 77])
    sizes = torch.tensor([[40, 52], [30, 52], [40, 20], [17, 33], [40, 52], [25, 25]])
    augment = TrainAugmentation(size=20, colour=STRONG)
    together = augment(frames, sizes, seeds)
    for row in range(6):
        one = slice(row, row + 1)
        height, width = sizes[row].tolist()
        unpadded = frames[one, ..., :height, :width]
        assert torch.equal(together[one], augment(frames[one], sizes[one], seeds[one]))
        assert torch.equal(together[one], augment(unpadded, sizes[one], seeds[one]))


def test_the_input_is_left_alone_and_the_output_repeats() -> None:
    frames, seeds = video(4), torch.arange(4)
    before = frames.clone()
    augment = TrainAugmentation(size=20, colour=STRONG)
    first = augment(frames, full_sizes(frames), seeds)
    assert torch.equal(frames, before)
    torch.rand(3)
    assert torch.equal(first, augment(frames, full_sizes(frames), seeds))


def test_every_view_is_corrupted_by_a_seed_of_its_own() -> None:
    seen: list[int] = []

    def corrupt(clips: Tensor, seeds: list[int]) -> Tensor:
        seen.extend(seeds)
        return clips

    augment = TrainAugmentation(size=20, corrupt=corrupt)
    frames = video(3)
    augment(frames, full_sizes(frames), torch.tensor([4, 4, 7]))
    assert seen[:2] == seen[2:4]
    assert len({*seen}) == 4


def test_the_boxes_for_a_cropping_reader_are_those_of_the_augmentation() -> None:
    frames, seeds = video(3), torch.tensor([4, 5, 6])
    augment = TrainAugmentation(size=16, **PLAIN)
    boxes = augment.boxes(full_sizes(frames), seeds, 2)
    assert boxes.shape == (3, 2, 4)
    cut = crop_resize(frames.flatten(0, 1), boxes.flatten(0, 1), size=16).unflatten(0, (3, 2))
    assert torch.equal(cut, augment(frames, full_sizes(frames), seeds))


def test_views_and_seeds_differ() -> None:
    frames = video(1, views=1).expand(2, 2, -1, -1, -1, -1)
    clips = TrainAugmentation(size=20)(frames, full_sizes(frames), torch.tensor([0, 1]))
    flat = clips.flatten(0, 1)
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(flat[i], flat[j], atol=0.05)


def test_without_colours_it_is_a_plain_crop() -> None:
    frames, seeds = video(3), torch.tensor([4, 5, 6])
    sizes = full_sizes(frames)
    draws = clip_draws([seed_of(s, v, "augment") for s in (4, 5, 6) for v in range(2)])
    boxes = random_resized_boxes(
        draws, sizes.repeat_interleave(2, 0), area=(0.3, 1.0), aspect=(0.5, 2.0)
    )
    expected = crop_resize(frames.flatten(0, 1), boxes, size=16).unflatten(0, (3, 2))
    assert torch.equal(TrainAugmentation(size=16, **PLAIN)(frames, sizes, seeds), expected)


def test_identity_settings_give_the_whole_frame() -> None:
    frames = video(2, sides=(24, 24))
    whole = RandomResizedCrop(area=(1.0, 1.0), aspect=(1.0, 1.0), flip=0.0)
    augment = TrainAugmentation(size=24, crop=whole, colour=PLAIN["colour"])
    clips = augment(frames, full_sizes(frames), torch.arange(2))
    assert torch.equal(clips, frames.float() / 255)


def test_flip_mirrors_every_frame() -> None:
    frames, seeds = video(3), torch.arange(3)
    sizes = full_sizes(frames)
    plain = TrainAugmentation(size=16, **PLAIN)(frames, sizes, seeds)
    always = PLAIN | {"crop": RandomResizedCrop(flip=1.0)}
    mirrored = TrainAugmentation(size=16, **always)(frames, sizes, seeds)
    assert torch.equal(mirrored, plain.flip(-1))


def test_one_probability_leaves_the_other_choices_alone() -> None:
    frames, seeds = video(8), torch.arange(8)
    sizes = full_sizes(frames)
    colour = TrainAugmentation(size=16, colour=RandomColour(gray_probability=0.0))(
        frames, sizes, seeds
    )
    both = TrainAugmentation(size=16, colour=RandomColour(gray_probability=0.4))(
        frames, sizes, seeds
    )
    gray = (both[:, :, 0] == both[:, :, 1]).flatten(2).all(2)
    assert 0 < gray.sum() < gray.numel()
    assert torch.equal(both[~gray], colour[~gray])


@pytest.mark.parametrize("name", ["blur", "solarise", "motion"])
def test_each_view_has_its_own_probability(name: str) -> None:
    frames, seeds = video(5), torch.arange(5)
    sizes = full_sizes(frames)
    plain = TrainAugmentation(size=16, **PLAIN)(frames, sizes, seeds)
    second = {f"{name}_probability": (0.0, 1.0), "blur_sigma": (1.0, 2.0)}
    colour = RandomColour(**UNCHANGED, **second)
    clips = TrainAugmentation(size=16, crop=PLAIN["crop"], colour=colour)(frames, sizes, seeds)
    assert torch.equal(clips[:, 0], plain[:, 0])
    assert ((clips[:, 1] - plain[:, 1]).abs().amax((1, 2, 3, 4)) > 0.05).all()


def test_probabilities_for_other_views_are_errors() -> None:
    frames = video(2, views=3)
    augment = TrainAugmentation(size=16, colour=RandomColour(solarise_probability=(0.0, 0.2)))
    with pytest.raises(UserError, match="solarise_probability holds 2 values for 3 views"):
        augment(frames, full_sizes(frames), torch.arange(2))


def test_a_size_below_two_pixels_is_an_error() -> None:
    with pytest.raises(UserError, match=r"^size must be at least 2 pixels, got 1"):
        TrainAugmentation(size=1)


@pytest.mark.parametrize("crops", [1, 3])
def test_evaluation_crops_each_view_at_the_documented_boxes(crops: int) -> None:
    frames = video(2, views=2)
    sizes = torch.tensor([[40, 52], [30, 20]])
    clips = EvalCrop(size=16, ratio=0.9, crops=crops)(frames, sizes)
    assert clips.shape == (2, 2 * crops, 3, 3, 16, 16)
    boxes = three_boxes(sizes, ratio=0.9)[:, [1] if crops == 1 else [0, 1, 2]]
    for sample in range(2):
        for view in range(2):
            for crop in range(crops):
                one = frames[sample, view][None]
                expected = crop_resize(one, boxes[sample, crop][None], size=16)[0]
                assert torch.equal(clips[sample, view * crops + crop], expected)


@pytest.mark.parametrize("options", [{"size": 0}, {"ratio": 1.1}, {"ratio": 0.0}, {"crops": 2}])
def test_evaluation_options_out_of_range_are_errors(options: dict) -> None:
    with pytest.raises(UserError, match=f"^{next(iter(options))} must"):
        EvalCrop(**({"size": 16} | options))


def test_strength_follows_the_progress_of_the_training_run() -> None:
    frames = video(4, sides=(24, 24))
    strong = {"crop": RandomResizedCrop(flip=0.0), "colour": STRONG}
    augment = TrainAugmentation(size=24, strengths=(1.0, 0.5, 0.0), **strong)
    full = TrainAugmentation(size=24, **strong)
    shown = [augment(frames, full_sizes(frames), torch.arange(4), p) for p in (0, 0.3, 0.4, 0.9, 1)]
    assert torch.equal(shown[0], full(frames, full_sizes(frames), torch.arange(4)))
    assert torch.equal(shown[0], shown[1])
    half = full.weakened(0.5)
    assert half.colour.jitter == pytest.approx((0.4, 0.4, 0.4, 0.1))
    assert half.crop.area == pytest.approx((0.65, 1.0))
    assert half.colour.blur_probability == pytest.approx(0.25)
    assert torch.equal(shown[2], half(frames, full_sizes(frames), torch.arange(4)))
    for each in shown[3:]:
        assert torch.equal(each, frames.float() / 255)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strengths": ()}, "strengths must be"),
        ({"strengths": (1.2,)}, "strengths must be"),
        ({"strengths": (1.0, 0.5), "cropped": True}, r"AUGMENT\.CROP_BY to device"),
    ],
)
def test_strengths_out_of_range_are_errors(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainAugmentation(size=16, **options)
