import torch

from tests.methods.made import batch, make_method
from vidcsl.methods.adversarial.advcl import matched


def test_clusters_keep_the_number_they_share_most_videos_with():
    before = torch.tensor([0, 0, 0, 1, 1, 2, 2, -1])
    after = torch.tensor([2, 2, 1, 0, 0, 1, 1, 1])
    renamed = matched(before, after, count=3)
    assert renamed.tolist() == [0, 0, 2, 1, 1, 2, 2, 2]
    assert matched(before, torch.full((8,), -1), count=3).tolist() == [-1] * 8
    assert sorted(matched(torch.full((3,), -1), torch.arange(3), count=3).tolist()) == [0, 1, 2]


def test_pseudo_labels_come_with_the_second_epoch_and_are_learned():
    method = make_method("advcl")  # of five epochs, clusters of 3 and 2
    losses = [
        float(method.train()(batch(videos=12, progress=progress, seed=4))["pseudo_label_loss"])
        for progress in (0.0, 0.1, 0.2, 0.3)
    ]
    assert losses[:3] == [0, 0, 0]  # what is clustered at the end of a step counts from the next on
    assert losses[3] > 0.2
    labels = method.pseudo_labels.of(torch.arange(12) + 40)
    assert set(labels[0].tolist()) == {0, 1, 2}
    assert set(labels[1].tolist()) == {0, 1}
