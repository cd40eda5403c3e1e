import numpy as np
import torch
import torch.nn.functional as F

from tests.methods.made import samples
from vidcsl.methods.false_negatives import Clusters, Observation
from vidcsl.methods.false_negatives.clusters import cluster_hierarchy


def blobs(count=24, kinds=4, spread=0.05):
    """Unit vectors around `kinds` centres, two of them near each other."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(6)[:kinds]
    centres[1] = F.normalize(centres[0] + 0.4 * centres[1], dim=0)
    kind = torch.arange(count) % kinds
    noise = spread * torch.randn(count, 6, generator=generator)
    return F.normalize(centres[kind] + noise, dim=1), kind


def observation(vectors, *, progress, videos=None):
    ids = torch.arange(len(vectors)) if videos is None else videos
    return Observation(ids, vectors[:, None], progress)


def flags(detector, count, progress):
    rows = samples(videos=count, views=1)
    negatives = ~torch.eye(count).bool()
    return detector(torch.zeros(count, count), negatives, rows, rows, progress)


def trained(vectors, **options):
    detector = Clusters(videos=len(vectors), dim=6, epochs=4, **options)
    detector.learn(observation(vectors, progress=0.0))
    detector.learn(observation(vectors, progress=0.25))
    return detector


def test_a_memory_of_one_epoch_is_clustered():
    vectors, kind = blobs()
    detector = trained(vectors, clusters=(4,), start=0.0, ramp=0.0)
    wanted = (kind[:, None] == kind[None]) & ~torch.eye(len(kind)).bool()
    assert torch.equal(flags(detector, len(kind), 0.3), wanted)


def test_a_run_that_starts_from_another_runs_state_clusters_it_and_its_own():
    vectors, kind = blobs()
    detector = trained(vectors, clusters=(4,), start=0.0, ramp=0.0)
    for epoch in (2, 3):
        detector.learn(observation(vectors, progress=epoch / 4))
    again = Clusters(videos=len(vectors), dim=6, epochs=4, clusters=(4,), start=0.0, ramp=0.0)
    again.load_state_dict(detector.state_dict())
    moved = vectors[torch.randperm(len(vectors), generator=torch.Generator().manual_seed(1))]
    again.learn(observation(moved, progress=0.0))
    wanted = (kind[:, None] == kind[None]) & ~torch.eye(len(kind)).bool()
    assert torch.equal(flags(again, len(kind), 0.1), wanted)
    again.learn(observation(moved, progress=0.25))
    assert not torch.equal(flags(again, len(kind), 0.3), wanted)


def test_the_memory_holds_the_direction_of_a_videos_mean_view():
    views = torch.randn(5, 3, 6, generator=torch.Generator().manual_seed(0))
    detector = Clusters(videos=5, dim=6, epochs=4)
    detector.learn(Observation(torch.arange(5), views, 0.0))
    torch.testing.assert_close(detector.memory, F.normalize(views.mean(dim=1), dim=1))


def test_nothing_is_flagged_before_an_epoch_is_over():
    vectors, _ = blobs()
    detector = Clusters(videos=24, dim=6, clusters=(4,), epochs=4, start=0.0, ramp=0.0)
    for progress in (0.0, 0.1, 0.2):
        detector.learn(observation(vectors, progress=progress))
        assert not flags(detector, 24, progress).any()


def test_confident_videos_count_first():
    vectors, kind = blobs(spread=0.15)
    detector = trained(vectors, clusters=(4,), start=0.25, ramp=0.5)
    counts = [int(flags(detector, 24, p).sum()) for p in (0.2, 0.375, 0.5, 0.75)]
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert counts[1] < counts[-1]
    # The first half that counts lies nearer the centres than the rest.
    centres = F.normalize(torch.stack([vectors[kind == k].mean(0) for k in range(4)]), dim=1)
    confidence = (vectors @ centres.T / 0.1).softmax(1).amax(1)
    counting = detector.rank[0] < 0.5
    assert confidence[counting].min() > confidence[~counting].max() - 1e-3


def test_the_accepted_fraction_of_the_confident_counts():
    vectors, _ = blobs(spread=0.15)
    detector = trained(vectors, clusters=(4,), accepted=0.375, start=0.0, ramp=0.0)
    label = detector.labels[0]
    centres = F.normalize(torch.stack([vectors[label == k].mean(0) for k in range(4)]), dim=1)
    confidence = (vectors @ centres.T / 0.1).softmax(1).gather(1, label[:, None])[:, 0]
    order = confidence.argsort(descending=True)
    assert torch.equal(detector.rank[0].argsort(), order)
    sure = torch.zeros(24, dtype=torch.bool)
    sure[order[:9]] = True
    wanted = (label[:, None] == label) & sure[:, None] & sure & ~torch.eye(24).bool()
    assert wanted.any()
    assert torch.equal(flags(detector, 24, 0.3), wanted)


def test_keys_of_no_video_are_in_no_cluster():
    vectors, _ = blobs()
    detector = trained(vectors, clusters=(4,), start=0.0, ramp=0.0)
    assert detector.labels[0, -1] >= 0  # the last video's, which is not theirs
    rows = samples(videos=24, views=1)
    keys = samples(videos=24, views=1)
    keys.videos[:] = -1
    every = torch.ones(24, 24, dtype=torch.bool)
    assert not detector(torch.zeros(24, 24), every, rows, keys, 1.0).any()


def test_the_seed_is_that_of_k_means():
    vectors = F.normalize(torch.randn(60, 6, generator=torch.Generator().manual_seed(3)), dim=1)
    one, again, other = (
        trained(vectors, clusters=(8,), start=0.0, ramp=0.0, seed=seed).labels for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_centre_weighs_as_many_videos_as_it_has():
    # The first two are nearer to each other, but the first stands for many: joining it costs more.
    angles = torch.tensor([0.0] * 50 + [0.5] * 2 + [1.05] * 2)
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1)
    _, (labels, _) = cluster_hierarchy(vectors.numpy(), (3, 2), seed=0)
    assert labels[50] == labels[52] != labels[0]


def test_a_hierarchy_joins_near_clusters():
    vectors, kind = blobs()
    (fine, _), (coarse, centres) = cluster_hierarchy(vectors.numpy(), (4, 3), seed=0)
    assert len({tuple(pair) for pair in np.stack([fine, kind.numpy()], 1).tolist()}) == 4
    assert len(set(coarse)) == 3
    joined = {k: set(coarse[kind.numpy() == k]) for k in range(4)}
    assert joined[0] == joined[1]  # the two that are near each other
    assert len(joined[0] | joined[2] | joined[3]) == 3
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, rtol=1e-5)
    detector = trained(vectors, clusters=(4, 3), start=0.0, ramp=0.0)
    near = (kind < 2)[:, None] & (kind < 2)[None]
    wanted = (near | (kind[:, None] == kind[None])) & ~torch.eye(24).bool()
    assert torch.equal(flags(detector, 24, 0.3), wanted)


def test_a_video_that_comes_twice_and_one_that_never_comes():
    vectors, _ = blobs()
    detector = Clusters(videos=30, dim=6, clusters=(4,), epochs=2, start=0.0, ramp=0.0)
    ids = torch.arange(24)
    ids[1] = 0  # stands in for a damaged one
    detector.learn(observation(vectors, progress=0.0, videos=ids))
    assert torch.equal(detector.memory[0], vectors[0])
    detector.learn(observation(vectors, progress=0.5, videos=ids))
    assert detector.labels[0, 1] == -1
    assert (detector.labels[0, 24:] == -1).all()
    assert not flags(detector, 30, 0.9)[24:].any()


def test_fewer_videos_than_clusters_flag_nothing():
    vectors, _ = blobs(count=4)
    assert not flags(trained(vectors, clusters=(4,), start=0.0, ramp=0.0), 4, 1.0).any()
