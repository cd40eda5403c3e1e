"""Twenty losses of each method, as they were when `golden_losses.json` was written.

A change of numbers that no reference in loops sees, as of an order, a weight or a default, shows
here. Float64 and weights drawn by NumPy, because the BatchNorms of an untrained network enlarge
rounding errors: in float32, or with torch's draws, which are rounded otherwise by each kind of
processor, losses differ in their first digit after twenty steps. Written anew, after a change that
is meant, by `python -m tests.methods.test_golden_losses`.
"""

import json
from pathlib import Path

import pytest
import torch

from tests.methods.made import make_method, rendered
from vidcsl.methods import METHODS
from vidcsl.models.encoder import Norms
from vidcsl.models.resnet3d import r2plus1d_18
from vidcsl.seeding import numpy_generator

GOLDEN = Path(__file__).with_name("golden_losses.json")
STEPS = 20
STEADY = {"barlow_twins": 4}  # it standardises embeddings that hardly differ: later steps are chaos
# The first step of DeACL's attack follows the signs of gradients that are nearly 0.
COMPARED = [name for name in METHODS if name != "deacl"]
BARE = Norms(hidden=False, last=False)


def encoder():
    return r2plus1d_18(clip_frames=4, frame_size=16, width=4, depth=1)


def losses(name, *, steps=STEPS):
    """Of `steps` steps of SGD, other videos in each."""
    method = make_method(name, encoder=encoder, norms=BARE).double().train()
    draws = numpy_generator("golden losses")
    with torch.no_grad():
        for weight in method.parameters():
            if weight.dim() == 1 and weight.requires_grad:
                continue  # constants, and uniform draws, which are rounded alike everywhere
            drawn = draws.standard_normal(weight.shape) / weight[0].numel() ** 0.5
            weight.copy_(torch.from_numpy(drawn))
    method.encoder_replaced()  # a momentum encoder starts from these weights
    optimiser = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=1e-3)
    everything = rendered(videos=12)
    found = []
    for step in range(steps):
        chosen = (torch.arange(6) * 5 + step) % 12
        batch = type(everything)(
            clips=everything.clips[chosen].double(),
            labels=everything.labels[chosen],
            groups=everything.groups[chosen],
            videos=everything.videos[chosen],
            progress=step / STEPS,
        )
        loss = method(batch)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        method.after_step(batch.progress)
        found.append(loss.item())
    return found


@pytest.mark.parametrize("name", COMPARED)
def test_losses_are_what_they_were(name):
    steps = STEADY.get(name, STEPS)
    wanted = json.loads(GOLDEN.read_text())[name][:steps]
    # Between AVX-512 and plain x86-64 the steps that are compared differed by up to 6e-6.
    assert losses(name, steps=steps) == pytest.approx(wanted, rel=1e-4)


if __name__ == "__main__":
    written = {name: losses(name) for name in COMPARED}
    rows = (f'"{name}": {json.dumps(row)}' for name, row in written.items())
    GOLDEN.write_text("{\n" + ",\n".join(rows) + "\n}\n")
