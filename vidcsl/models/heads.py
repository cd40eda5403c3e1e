"""What sits on top of an encoder: projectors for pretraining, a linear layer for classes."""

from itertools import pairwise

from torch import Tensor, nn

from vidcsl.models.encoder import Encoder


def projector(*, in_dim: int, hidden_dim: int, out_dim: int, layers: int) -> nn.Module:
    """Multi-layer perceptron: BatchNorm and ReLU between its layers, BatchNorm at its end.

    SimCLR's head (Chen et al., 2020) has 2 layers, CVRL's (Qian et al., 2021) 3. The BatchNorm at
    the end, as in SimCLR's released code and MoCo v3, centres the embeddings of a batch: without
    it all of them first drift to one point, and it takes hundreds of steps to part them again.

    Args:
        in_dim, hidden_dim, out_dim: feature, hidden and embedding sizes.
        layers: number of linear layers; 0 gives the features themselves.
    """
    if layers == 0:
        return nn.Identity()
    sizes = [in_dim] + [hidden_dim] * (layers - 1)
    hidden: list[nn.Module] = []
    for before, after in pairwise(sizes):
        hidden += [
            nn.Linear(before, after, bias=False),
            nn.BatchNorm1d(after),
            nn.ReLU(inplace=True),
        ]
    last = (nn.Linear(sizes[-1], out_dim, bias=False), nn.BatchNorm1d(out_dim, affine=False))
    return nn.Sequential(*hidden, *last)


class Classifier(nn.Module):
    """An encoder and a linear head: [0, 1] clips `[N, 3, T, S, S]` to logits `[N, classes]`."""

    def __init__(self, encoder: Encoder, head: nn.Linear) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, clips: Tensor) -> Tensor:
        """Logits `[N, classes]`."""
        logits: Tensor = self.head(self.encoder(clips))
        return logits
