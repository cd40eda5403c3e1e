import pytest
import torch
import torch.nn.functional as F

from tests.methods.made import batch, make_method


def naive(embeddings, videos, removed, temperature):
    total, rows = 0.0, len(embeddings)
    for i in range(rows):
        others = [j for j in range(rows) if j != i and not removed(i, j)]
        partners = [j for j in others if videos[j] == videos[i]]
        logits = torch.stack([embeddings[i] @ embeddings[j] / temperature for j in others])
        terms = F.log_softmax(logits, dim=0)
        total = total - sum(terms[others.index(j)] for j in partners) / len(partners)
    return total / rows


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("detector", ["none", "labels", "known_groups"])
def test_a_step_with_elimination_against_a_loop(detector, views):
    data, method = batch(views=views), make_method("simclr", detector=detector)
    loss = method(data)["loss"]
    features = method.projector(method.encoder(data.clips.flatten(0, 1)))
    embeddings = features / features.norm(dim=1, keepdim=True)
    videos, labels, groups = (
        ids.repeat_interleave(views) for ids in (data.videos, data.labels, data.groups)
    )
    key = {"none": videos, "labels": labels, "known_groups": groups}[detector]
    wanted = naive(
        embeddings,
        videos.tolist(),
        lambda i, j: videos[i] != videos[j] and key[i] == key[j],
        temperature=0.2,
    )
    torch.testing.assert_close(loss, wanted)
    weight = method.encoder.net[1].weight
    mine, theirs = (torch.autograd.grad(each, weight)[0] for each in (loss, wanted))
    torch.testing.assert_close(mine, theirs)
