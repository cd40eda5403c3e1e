import torch
import torch.nn.functional as F

from tests.methods.made import batch, make_method


def test_is_cross_entropy_over_views_and_learns():
    data, method = batch(), make_method("supervised")
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
