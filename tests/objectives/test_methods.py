from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vidcsl.models.heads import projector
from vidcsl.objectives import CONTRASTIVE, ClipBatch
from vidcsl.objectives.false_negatives import DETECTORS, TREATMENTS
from vidcsl.objectives.losses import nt_xent
from vidcsl.objectives.supervised import Supervised


class TinyEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 2 * 4 * 4, 16), nn.ReLU())

    def forward(self, clips):
        return self.net(clips)


def batch(*, videos=6, views=2, classes=2, progress=1.0):
    generator = torch.Generator().manual_seed(3)
    return ClipBatch(
        clips=torch.rand(videos, views, 3, 2, 4, 4, generator=generator),
        labels=torch.arange(videos) % classes,
        groups=torch.arange(videos) // 2,
        videos=torch.arange(videos) + 40,
        progress=progress,
    )


def contrastive(name, *, detector="none", treatment="eliminate"):
    torch.manual_seed(0)
    return CONTRASTIVE[name](
        TinyEncoder(),
        projector(in_dim=16, hidden_dim=16, out_dim=8, layers=2),
        loss=partial(nt_xent, temperature=0.2),
        detector=DETECTORS[detector](),
        treatment=TREATMENTS[treatment],
    )


def naive_simclr(embeddings, videos, removed, temperature):
    total, rows = 0.0, len(embeddings)
    for i in range(rows):
        others = [j for j in range(rows) if j != i and not removed(i, j)]
        (partner,) = [j for j in others if videos[j] == videos[i]]
        logits = torch.stack([embeddings[i] @ embeddings[j] / temperature for j in others])
        total = total - F.log_softmax(logits, dim=0)[others.index(partner)]
    return total / rows


@pytest.mark.parametrize("detector", ["none", "labels", "known_groups"])
def test_simclr_with_elimination_against_a_loop(detector):
    data = batch()
    method = contrastive("simclr", detector=detector)
    out = method(data)
    embeddings = method.embed(data.clips)
    videos, labels, groups = (
        ids.repeat_interleave(2) for ids in (data.videos, data.labels, data.groups)
    )
    key = {"none": videos, "labels": labels, "known_groups": groups}[detector]
    wanted = naive_simclr(
        embeddings,
        videos.tolist(),
        lambda i, j: videos[i] != videos[j] and key[i] == key[j],
        temperature=0.2,
    )
    torch.testing.assert_close(out["loss"], wanted)


def test_attracting_the_oracles_pairs_is_supcon():
    data = batch()
    attracted = contrastive("simclr", detector="labels", treatment="attract")(data)["loss"]
    torch.testing.assert_close(attracted, contrastive("supcon")(data)["loss"])


@pytest.mark.parametrize(
    ("name", "detector", "treatment", "views"),
    list(product(CONTRASTIVE, DETECTORS, TREATMENTS, [2, 3])),
)
def test_every_combination_gives_a_finite_loss_and_gradient(name, detector, treatment, views):
    method = contrastive(name, detector=detector, treatment=treatment)
    out = method(batch(views=views))
    out["loss"].backward()
    assert out["loss"].isfinite()
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)
    assert not out["alignment"].requires_grad


def test_rows_without_a_negative_are_skipped_and_counted():
    data = batch(videos=2)
    data = ClipBatch(data.clips, torch.zeros(2).long(), data.groups, data.videos, 1.0)
    out = contrastive("simclr", detector="labels")(data)
    assert out["undefined_rows"] == 4
    assert out["loss"] == 0


def rank_of(embeddings):
    energy = torch.linalg.svdvals(embeddings - embeddings.mean(0)).square()
    share = energy / energy.sum()
    return float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum()))


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_loss_falls_and_the_embedding_does_not_collapse(name):
    data, method = batch(videos=12, classes=4), contrastive(name)
    optimiser = torch.optim.Adam(method.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = method(data)["loss"]
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert rank_of(method.embed(data.clips).detach()) > 2  # four classes span three directions


def test_supervised_is_cross_entropy_over_views_and_learns():
    torch.manual_seed(0)
    data, method = batch(), Supervised(TinyEncoder(), feature_dim=16, classes=2)
    out = method(data)
    logits = method.head(method.encoder(data.clips.flatten(0, 1)))
    wanted = F.cross_entropy(logits, data.labels.repeat_interleave(2))
    torch.testing.assert_close(out["loss"], wanted)
    optimiser = torch.optim.Adam(method.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        out = method(data)
        out["loss"].backward()
        optimiser.step()
    assert out["train_accuracy"] == 1
