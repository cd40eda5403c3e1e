import numpy as np
import pytest
import torch
from torch import nn

from vidcsl.augment.pipeline import EvalCrop
from vidcsl.data.loader import Batch
from vidcsl.errors import UserError
from vidcsl.evaluation.features import Features
from vidcsl.evaluation.neighbours import knn_accuracy, retrieval_recall
from vidcsl.robustness.attacks import GOALS, PGD, Problem, RandomNoise, attack
from vidcsl.robustness.attacks.answers import answer, surrogates_of
from vidcsl.robustness.attacks.goals import NeighbourSwitch
from vidcsl.robustness.targets import (
    TRANSFORMS,
    Expectation,
    GaussianNoise,
    NeighbourVote,
    OverViews,
    RandomCrop,
    cropped_clips,
    decoded_frames,
    frames_used,
    mean_direction,
    mean_probability,
)
from vidcsl.robustness.threats import L2, Linf
from vidcsl.seeding import torch_generator
from vidcsl.state import weights_digest

CLASSES = 4
RANDOM = {name: make for name, make in TRANSFORMS.items() if name != "none"}


class Net(nn.Module):
    """Any frames of at least 4 x 4 to `out` numbers; in double, so that no rounding decides."""

    def __init__(self, out=CLASSES, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Conv3d(3, 12, 3, padding=1)
            self.head = nn.Linear(12, out)
        self.double()
        self.head.weight.data *= 20

    def forward(self, clips):
        return self.head(self.body(clips - 0.5).tanh().square().flatten(2).mean(2))


def rand(*shape, seed=0):
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def overlapping_views():
    """Three views of four frames with stride 2 in a video of eleven frames."""
    return np.array([[0, 2, 4, 6], [2, 4, 6, 8], [4, 6, 8, 10]])


def test_frames_used_are_shared_by_overlapping_views():
    used, views = frames_used(overlapping_views())
    assert used.tolist() == [0, 2, 4, 6, 8, 10]
    assert np.array_equal(used[views], overlapping_views())
    looped, views = frames_used(np.array([[0, 4, 8]]) % 6)  # a short video starts again
    assert np.array_equal(looped[views], [[0, 4, 2]])


@pytest.mark.parametrize("crops", [1, 3])
def test_a_video_is_predicted_as_evaluation_predicts_it(crops):
    model, crop = Net().eval(), EvalCrop(size=6, crops=crops)
    used, views = frames_used(overlapping_views())
    frames = rand(2, 3, len(used), 8, 12)
    logits = OverViews(model, views, crop=crop)(frames)
    # As evaluation does it: all views side by side, cropped, the mean of their probabilities.
    stacked = torch.stack([frames[:, :, view] for view in torch.from_numpy(views)], dim=1)
    clips = crop(stacked, torch.tensor([[8, 12]] * 2))
    naive = model(clips.flatten(0, 1)).unflatten(0, (2, 3 * crops)).softmax(2).mean(1)
    torch.testing.assert_close(logits.exp(), naive)

    encoder = OverViews(model, views, crop=crop, mean=mean_direction)
    features = model(clips.flatten(0, 1)).unflatten(0, (2, 3 * crops))
    nobody = torch.zeros(2, dtype=torch.long)
    pooled = Features(features, nobody, nobody, nobody).pooled()
    torch.testing.assert_close(encoder(frames), pooled)


def test_a_shared_frame_gets_the_gradients_of_all_its_views():
    model = Net().eval()
    _, views = frames_used(overlapping_views())
    frames = rand(1, 3, 6, 6, 6).requires_grad_()
    loss = OverViews(model, views)(frames)[:, 0].sum()
    (shared,) = torch.autograd.grad(loss, frames)
    clips = torch.stack([frames[0, :, view] for view in torch.from_numpy(views)])
    leaves = clips.detach().requires_grad_()
    logits = mean_probability(model(leaves)[None])[:, 0].sum()
    (separate,) = torch.autograd.grad(logits, leaves)
    expected = torch.zeros_like(frames[0])
    for view, gradient in zip(views, separate, strict=True):
        for position, frame in enumerate(view):
            expected[:, frame] += gradient[:, position]
    torch.testing.assert_close(shared[0], expected)


def test_one_view_without_a_crop_is_the_model_itself():
    model, clips = Net().eval(), rand(3, 3, 4, 6, 6)
    assert torch.equal(OverViews(model, np.arange(4)[None])(clips), model(clips))


def test_views_that_the_frames_do_not_have_are_named():
    with pytest.raises(UserError, match="11 or more"):
        OverViews(Net(), overlapping_views())(rand(1, 3, 4, 6, 6))
    with pytest.raises(UserError, match=r"\[V, T\]"):
        OverViews(Net(), np.arange(4))


def gallery(encoder, size=40):
    clips = rand(size, 3, 4, 6, 6, seed=5)
    features = nn.functional.normalize(encoder(clips), dim=1).detach()
    return features, torch.arange(size) % CLASSES


@pytest.mark.parametrize("k", [1, 7, 100])
@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_neighbours_vote_as_knn_and_retrieval_do(k, temperature):
    encoder = Net(out=8).eval()
    shown, known = gallery(encoder)
    target = NeighbourVote(encoder, shown, known, classes=CLASSES, k=k, temperature=temperature)
    clips, labels = rand(60, 3, 4, 6, 6, seed=9), torch.arange(60) % CLASSES
    queries = nn.functional.normalize(encoder(clips), dim=1)
    right = (target(clips).argmax(1) == labels).double().mean()
    sides = (queries, labels, shown, known)
    assert right == pytest.approx(knn_accuracy(*sides, k=k, temperature=temperature))
    if k == 1:
        assert right == pytest.approx(retrieval_recall(*sides)["R@1"])


def test_a_vote_is_by_the_direction_of_features():
    class Longer(nn.Module):
        def forward(self, features):
            return features * (2 + features.norm(dim=1, keepdim=True))

    encoder = Net(out=8).eval()
    longer = nn.Sequential(encoder, Longer()).eval()
    shown, known = gallery(encoder)
    clips = rand(20, 3, 4, 6, 6, seed=9)
    one, other = (
        NeighbourVote(each, shown, known, classes=CLASSES, k=7)(clips) for each in (encoder, longer)
    )
    torch.testing.assert_close(one, other)


def test_votes_over_one_gallery_are_told_apart():
    """Else results of one, and deltas fitted to it, would be used for another."""
    encoder = Net(out=8).eval()
    shown, known = gallery(encoder)
    of_vote = {"k": 7, "temperature": 0.07}, {"k": 1, "temperature": 0.07}, {"k": 7}
    named = [
        weights_digest(NeighbourVote(encoder, shown, known, classes=CLASSES, **each))
        for each in (*of_vote, {"k": 7, "temperature": 0.1})
    ]
    assert named[0] == named[2]
    assert len({*named}) == 3


def test_a_vote_without_a_single_other_neighbour_still_has_a_gradient():
    encoder = Net(out=8).eval()
    shown, known = gallery(encoder)
    target = NeighbourVote(encoder, shown, known, classes=CLASSES, k=1)
    clips = rand(5, 3, 4, 6, 6, seed=9).requires_grad_()
    logits = target(clips)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, logits.argmax(1)), clips)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


def test_a_class_missing_from_the_gallery_has_a_finite_logit():
    encoder = Net(out=8).eval()
    shown, _ = gallery(encoder)
    target = NeighbourVote(encoder, shown, torch.zeros(40).long(), classes=3, k=5)
    logits = target(rand(2, 3, 4, 6, 6))
    assert logits.isfinite().all()
    assert (logits.argmax(1) == 0).all()
    with pytest.raises(UserError, match="labels"):
        NeighbourVote(encoder, shown, torch.full((40,), -1), classes=3, k=5)


class Close(nn.Module):
    """Features as trained encoders have them: all much alike, so that nearest is a close call."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.wide, self.narrow = nn.Linear(108, 32).double(), nn.Linear(32, 8).double()
        self.narrow.bias.data += 1.5

    def forward(self, clips):
        return self.narrow((3 * (clips - 0.5).flatten(1) @ self.wide.weight.T).tanh())


def close_votes(k):
    encoder = Close().eval()
    shown = nn.functional.normalize(encoder(rand(80, 3, 4, 3, 3, seed=5)), dim=1).detach()
    known = torch.arange(80) % CLASSES
    known[:30] = 0  # one class is large: the whole gallery's soft vote names hardly another
    return NeighbourVote(encoder, shown, known, classes=CLASSES, k=k)


def right_after(votes, clips, labels, attacked, goal, **options):
    solver = PGD(steps=8, **options)
    found = attack(attacked, clips, labels, threat=Linf(0.02), goal=goal, solver=solver)
    return int((votes(found).argmax(1) == labels).sum())


@pytest.mark.parametrize("k", [1, 7])
def test_no_direct_attack_on_features_beats_that_on_a_vote(k):
    """With the soft vote of a whole gallery, it left twice as many clips right as this one does."""
    votes, clips = close_votes(k), rand(60, 3, 4, 3, 3, seed=9)
    labels = votes(clips).argmax(1)
    known = votes.one_hot.argmax(1)
    for goal in ("cross_entropy", "margin"):
        left = right_after(votes, clips, labels, votes, goal)
        for near in (1, 4):
            direct = NeighbourSwitch(votes.gallery, known, near)
            options = {"stop_when_fooled": False}  # its own idea of fooled is not the vote's
            assert left <= right_after(votes, clips, labels, votes.encoder, direct, **options) + 1


@pytest.mark.parametrize("k", [1, 7, 60])
def test_what_an_attack_climbs_has_the_gradient_of_its_own_value(k):
    votes, clips = close_votes(k), rand(30, 3, 4, 3, 3, seed=9)
    labels, way = votes(clips).argmax(1), rand(30, 3, 4, 3, 3, seed=2) - 0.5
    for surrogate in surrogates_of(votes):
        problem = Problem.of(
            surrogate, Linf(0.1), GOALS["cross_entropy"], clips, labels, seeds=range(30)
        )
        slope = (problem.gradient_at(clips) * way).flatten(1).sum(1)
        step = 1e-6
        rise = problem.goal_at(clips + step * way) - problem.goal_at(clips - step * way)
        torch.testing.assert_close(rise / (2 * step), slope, rtol=1e-4, atol=1e-7)
        assert (slope != 0).all()


@pytest.mark.parametrize("k", [1, 7])
def test_what_an_attack_climbs_agrees_with_the_vote(k):
    votes, clips = close_votes(k), rand(100, 3, 4, 3, 3, seed=9)
    for surrogate in surrogates_of(votes):
        found = answer(surrogate, clips)
        assert torch.equal(found.decision.argmax(1), votes(clips).argmax(1))
        agree = (found.logits.argmax(1) == found.decision.argmax(1)).double().mean()
        assert agree >= (1.0 if k == 1 else 0.8)


def targets():
    model, encoder = Net().eval(), Net(out=8).eval()
    shown, known = gallery(encoder)
    _, views = frames_used(overlapping_views())
    pooled = OverViews(encoder, views, mean=mean_direction)
    crop = EvalCrop(size=6, crops=3)
    draws = {name: Expectation(model, make(), draws=3, seed=1) for name, make in RANDOM.items()}
    return {
        "clip": model,
        "video": OverViews(model, views),
        "crops": OverViews(model, views, crop=crop),
        "knn": NeighbourVote(encoder, shown, known, classes=CLASSES, k=5),
        "retrieval": NeighbourVote(encoder, shown, known, classes=CLASSES, k=1),
        "video knn": NeighbourVote(pooled, shown, known, classes=CLASSES, k=5),
        "random video": Expectation(OverViews(model, views), TRANSFORMS["crop"](), draws=2),
        **draws,
    }


@pytest.mark.parametrize("threat", [Linf(0.1), L2(2.5)], ids=["linf", "l2"])
@pytest.mark.parametrize("name", list(targets()))
def test_every_target_falls_to_an_attack_that_noise_cannot_match(name, threat):
    target, frames = targets()[name], rand(16, 3, 6, 8, 12, seed=3)
    labels = target(frames).argmax(1)
    accuracy = {}
    for solver in (RandomNoise(), PGD(steps=8)):
        adversarial = attack(target, frames, labels, threat=threat, solver=solver)
        again = attack(target, frames, labels, threat=threat, solver=solver)
        assert torch.equal(adversarial, again)
        accuracy[solver] = float((target(adversarial).argmax(1) == labels).double().mean())
    noise, pgd = accuracy.values()
    assert pgd <= 0.5
    assert pgd < noise


@pytest.mark.parametrize("name", list(RANDOM))
def test_the_expectation_is_the_mean_over_its_draws(name):
    model, transform, clips = Net().eval(), TRANSFORMS[name](), rand(3, 3, 4, 6, 6)
    drawn = [transform(clips, torch_generator(2, draw, "transform")) for draw in range(5)]
    assert not torch.equal(drawn[0], drawn[1])
    naive = torch.stack([model(each).softmax(1) for each in drawn]).mean(0)
    logits = Expectation(model, transform, draws=5, seed=2)(clips)
    torch.testing.assert_close(logits.exp(), naive)
    with pytest.raises(UserError, match="draws"):
        Expectation(model, transform, draws=0)


def test_noisy_clips_stay_pixels():
    clips = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64).view(1, 3, 1, 1, 1)
    clips = clips.expand(2, 3, 4, 6, 6)
    found = GaussianNoise(0.1)(clips, torch.Generator().manual_seed(0))
    noise = torch.randn((3, 4, 6, 6), generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(found, (clips + 0.1 * noise).clamp(0, 1))


def test_random_crops_are_squares_of_every_size_and_place():
    frames = torch.arange(8.0 * 12).view(1, 1, 1, 8, 12).expand(1, 3, 2, 8, 12).contiguous()
    for seed in range(20):
        share, down, right = torch.rand(3, generator=torch.Generator().manual_seed(seed)).tolist()
        side = round((0.5 + 0.5 * share) * 8)
        top, left = int(down * (9 - side)), int(right * (13 - side))
        cut = frames[0, :, :, top : top + side, left : left + side]
        wanted = nn.functional.interpolate(cut, size=(8, 12), mode="bilinear")
        found = RandomCrop((0.5, 1.0))(frames, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(found[0], wanted)


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


class PixelMeans(nn.Module):
    def forward(self, clips):
        return torch.stack([clips.mean((1, 2, 3, 4)), clips[:, 0, 0].std((1, 2))], dim=1)


def outputs_of(pixels, crop, mean):
    """Outputs by video, and how many frames each video has."""
    outputs, lengths = {}, {}
    seeds, videos = [70, 71, 72, 73], [10, 11, 12, 13]
    for clips in pixels(batch(), crop, seeds=seeds, videos=videos):
        assert clips.seeds == [60 + video for video in clips.videos]
        assert clips.labels.tolist() == [video - 10 for video in clips.videos]
        logits = clips.view(PixelMeans(), mean)(clips.clips)
        outputs |= dict(zip(clips.videos, logits, strict=True))
        lengths |= dict.fromkeys(clips.videos, clips.clips.shape[2])
    return torch.stack([outputs[video] for video in videos]), lengths


def test_decoded_frames_give_the_outputs_of_the_cropped_views():
    for crops in (1, 3):
        crop, whole = EvalCrop(size=6, crops=crops), batch()
        clips = crop(whole.frames.float() / 255, whole.sizes)  # uint8 would be rounded again
        views = PixelMeans()(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
        for mean in (mean_probability, mean_direction):
            outputs, lengths = outputs_of(decoded_frames, crop, mean)
            torch.testing.assert_close(outputs, mean(views))
        assert lengths == {10: 4, 11: 4, 12: 6, 13: 4}  # a shared frame is there once


def test_videos_that_overlap_alike_come_together():
    groups = decoded_frames(batch(), EvalCrop(size=6), seeds=range(4), videos=range(4))
    assert sorted(clips.videos for clips in groups) == [[0, 1], [2], [3]]


def test_cropped_clips_are_the_first_views():
    crop, whole = EvalCrop(size=6), batch()
    outputs, lengths = outputs_of(cropped_clips, crop, mean_probability)
    assert torch.equal(outputs, PixelMeans()(crop(whole.frames, whole.sizes)[:, 0]))
    assert set(lengths.values()) == {2}
