import pytest
import torch
from torch import nn

from vidcsl.errors import UserError
from vidcsl.state import load_weights


def test_weights_of_another_architecture_are_described():
    module = nn.Linear(3, 2)
    load_weights(module, {"weight": torch.ones(2, 3), "bias": torch.ones(2)}, source="good")
    assert (module.weight == 1).all()
    wrong = {"weight": torch.ones(5, 3), "scale": torch.ones(1)}
    with pytest.raises(UserError) as caught:
        load_weights(module, wrong, source="other.pt")
    text = str(caught.value)
    for part in ("other.pt", "1 missing (bias)", "1 unknown (scale)", "(5, 3) instead of (2, 3)"):
        assert part in text
