"""Several sets of BatchNorms in one network: clean and adversarial clips have other statistics.

Xie et al., "Adversarial Examples Improve Image Recognition", CVPR 2020; in contrastive pretraining
Jiang et al., "Robust Pre-Training by Adversarial Contrastive Learning", NeurIPS 2020.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vidcsl.errors import UserError

CLEAN, ADVERSARIAL = "clean", "adversarial"


class NormSet(nn.Module):
    """BatchNorms of one place, by name, of which one is in use."""

    def __init__(self, norm: _BatchNorm, names: Sequence[str]) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({name: deepcopy(norm) for name in names})
        self.active = names[0]

    def forward(self, maps: Tensor) -> Tensor:
        """Maps normalised by the BatchNorm in use."""
        normalised: Tensor = self.norms[self.active](maps)
        return normalised


def has_norms(module: nn.Module) -> bool:
    """Whether there is a BatchNorm in it."""
    return any(isinstance(each, _BatchNorm) for each in module.modules())


def with_norm_sets(module: nn.Module, names: Sequence[str] = (CLEAN, ADVERSARIAL)) -> nn.Module:
    """`module` with every BatchNorm copied once for each name, in place; the first is in use.

    Raises:
        UserError: there is no BatchNorm in it.
    """
    if not has_norms(module):
        raise UserError(
            f"{type(module).__name__} has no BatchNorm to be doubled; set MODEL.DUAL_NORM to false"
        )
    _replace(module, names)
    return module


def use_norms(module: nn.Module, name: str) -> None:
    """From now on the BatchNorms of this name are in use; without any sets, nothing changes.

    Raises:
        UserError: there is no set of this name.
    """
    for each in _named(module, name):
        each.active = name


@contextmanager
def norms_in_use(module: nn.Module, name: str) -> Iterator[None]:
    """As `use_norms`, within the block only."""
    with _activated(dict.fromkeys(_named(module, name), name)):
        yield


def idle_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of BatchNorms that are not in use."""
    idle = (
        norm for each in _sets(module) for name, norm in each.norms.items() if name != each.active
    )
    return [parameter for norm in idle for parameter in norm.parameters()]


def use_again(module: nn.Module) -> AbstractContextManager[None]:
    """A block in which the BatchNorms are in use that are in use now."""
    return _activated({each: each.active for each in _sets(module)})


def _sets(module: nn.Module) -> list[NormSet]:
    return [each for each in module.modules() if isinstance(each, NormSet)]


def _named(module: nn.Module, name: str) -> list[NormSet]:
    """The sets of a module, each of which has a BatchNorm of this name."""
    sets = _sets(module)
    unknown = [each for each in sets if name not in each.norms]
    if unknown:
        raise UserError(f"no BatchNorms are named {name!r}: {', '.join(unknown[0].norms)}")
    return sets


@contextmanager
def _activated(names: Mapping[NormSet, str]) -> Iterator[None]:
    before = {each: each.active for each in names}
    for each, name in names.items():
        each.active = name
    try:
        yield
    finally:
        for each, name in before.items():
            each.active = name


def _replace(module: nn.Module, names: Sequence[str]) -> None:
    for child_name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, child_name, NormSet(child, names))
        else:
            _replace(child, names)
