"""What sits on top of an encoder: projectors for pretraining, a linear layer for classes."""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from vidcsl.models.encoder import Encoder


@dataclass(frozen=True)
class Norms:
    """Where a head has BatchNorm: between its layers, at its end."""

    hidden: bool = True
    last: bool = True


def projector(
    *, in_dim: int, hidden_dim: int, out_dim: int, layers: int, norms: Norms = Norms()
) -> nn.Module:
    """Multi-layer perceptron with ReLU between its layers; also the predictors of BYOL and MoCo v3.

    A BatchNorm at the end, as in SimCLR's released code and MoCo v3, centres the embeddings of a
    batch: without it all of them first drift to one point, and it takes hundreds of steps to part
    them again.

    Args:
        in_dim, hidden_dim, out_dim: feature, hidden and embedding sizes.
        layers: number of linear layers; 0 gives the features themselves.
        norms: where there is BatchNorm; a layer without it has a bias.
    """
    if layers == 0:
        return nn.Identity()
    sizes = [in_dim] + [hidden_dim] * (layers - 1)
    hidden: list[nn.Module] = []
    for before, after in pairwise(sizes):
        hidden.append(nn.Linear(before, after, bias=not norms.hidden))
        hidden += [nn.BatchNorm1d(after)] if norms.hidden else []
        hidden.append(nn.ReLU(inplace=True))
    last: list[nn.Module] = [nn.Linear(sizes[-1], out_dim, bias=not norms.last)]
    last += [nn.BatchNorm1d(out_dim, affine=False)] if norms.last else []
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
