"""Auxiliary BatchNorms for adversarial clips, and BatchNorms folded into convolutions.

Clean and adversarial clips have different statistics, so each BatchNorm is held once for each:
Xie et al., "Adversarial Examples Improve Image Recognition" (AdvProp), CVPR 2020; in contrastive
pretraining Jiang et al., "Robust Pre-Training by Adversarial Contrastive Learning", NeurIPS 2020.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from itertools import pairwise
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_weights

from vidcsl.errors import UserError

CLEAN, ADVERSARIAL = "clean", "adversarial"


class AuxiliaryBatchNorm(nn.Module):
    """Several BatchNorms in one place, by name, of which one is in use."""

    def __init__(self, norm: _BatchNorm, names: Sequence[str]) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({name: deepcopy(norm) for name in names})
        self.active = names[0]

    def forward(self, maps: Tensor) -> Tensor:
        """Maps normalised by the BatchNorm in use."""
        normalised: Tensor = self.norms[self.active](maps)
        return normalised


def has_batchnorm(module: nn.Module) -> bool:
    """Whether the module contains a BatchNorm."""
    return any(isinstance(each, _BatchNorm) for each in module.modules())


def add_auxiliary_batchnorm(
    module: nn.Module, names: Sequence[str] = (CLEAN, ADVERSARIAL)
) -> nn.Module:
    """Copy every BatchNorm of `module` once for each name, in place; the first name is in use.

    Raises:
        UserError: the module contains no BatchNorm.
    """
    if not has_batchnorm(module):
        raise UserError(
            f"{type(module).__name__} has no BatchNorm to copy; set MODEL.DUAL_NORM to false"
        )
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm):
                setattr(parent, name, AuxiliaryBatchNorm(child, names))
    return module


def use_batchnorm(module: nn.Module, name: str) -> None:
    """Use the BatchNorms of this name from now on; without auxiliary ones, nothing changes.

    Raises:
        UserError: the module has auxiliary BatchNorms, but none of this name.
    """
    for each in _named(module, name):
        each.active = name


@contextmanager
def batchnorm_in_use(module: nn.Module, name: str) -> Iterator[None]:
    """As `use_batchnorm`, within the block only."""
    with _activated(dict.fromkeys(_named(module, name), name)):
        yield


def keep_batchnorm_in_use(module: nn.Module) -> AbstractContextManager[None]:
    """A block in which the BatchNorms are in use that are in use now, at its creation."""
    return _activated({each: each.active for each in _auxiliary(module)})


def idle_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of BatchNorms that are not in use."""
    return [
        parameter
        for each in _auxiliary(module)
        for name, norm in each.norms.items()
        if name != each.active
        for parameter in norm.parameters()
    ]


def _auxiliary(module: nn.Module) -> list[AuxiliaryBatchNorm]:
    return [each for each in module.modules() if isinstance(each, AuxiliaryBatchNorm)]


def _named(module: nn.Module, name: str) -> list[AuxiliaryBatchNorm]:
    found = _auxiliary(module)
    for each in found:
        if name not in each.norms:
            raise UserError(f"no BatchNorm is named {name!r}; choose from {', '.join(each.norms)}")
    return found


@contextmanager
def _activated(names: Mapping[AuxiliaryBatchNorm, str]) -> Iterator[None]:
    before = {each: each.active for each in names}
    for each, name in names.items():
        each.active = name
    try:
        yield
    finally:
        for each, name in before.items():
            each.active = name


# ----------------------------------------------------------------------
# BatchNorms in eval mode as part of the convolutions before them: fewer passes over the maps.

_Leaf = tuple[nn.Sequential, str]
"""A module in a Sequential that is none itself: where it stands."""


@contextmanager
def folded(module: nn.Module) -> Iterator[None]:
    """Within the block, a BatchNorm right behind a convolution of a Sequential costs nothing.

    In eval mode it scales and shifts each channel by constants, which the convolution's weight and
    bias can do as well; outputs differ by rounding. The module must stay in eval mode, and its
    weights as they are, until the block ends; then it is exactly what it was.

    A compiled module is left alone: its compiler does as much.
    """
    compiled = any(hasattr(m.forward, "_torchdynamo_orig_callable") for m in module.modules())
    pairs = [] if compiled else _pairs(module)
    convs = [(conv, conv.weight, conv.bias) for conv, _, _ in pairs]
    norms = [(sequence, name, sequence._modules[name]) for _, _, (sequence, name) in pairs]
    try:
        for conv, norm, (sequence, name) in pairs:
            mean, var = norm.running_mean, norm.running_var
            assert mean is not None  # `_pairs` leaves norms without statistics out
            assert var is not None
            with torch.no_grad():
                conv.weight, conv.bias = fuse_conv_bn_weights(
                    conv.weight, conv.bias, mean, var, norm.eps, norm.weight, norm.bias
                )
            # What is left of it: nothing, but for timm's, which hold an activation.
            sequence._modules[name] = nn.Sequential(*norm.children())
        yield
    finally:
        for conv, weight, bias in convs:
            conv.weight, conv.bias = weight, bias
        for sequence, name, replaced in norms:
            sequence._modules[name] = replaced


def _pairs(module: nn.Module) -> list[tuple[_ConvNd, _BatchNorm, _Leaf]]:
    """Each convolution, the constant BatchNorm right behind it, and where that stands."""
    found = {}
    for each in module.modules():
        for (chain, before), (sequence, name) in pairwise(_leaves(each)):
            conv, norm = chain._modules[before], sequence._modules[name]
            if isinstance(norm, AuxiliaryBatchNorm):
                norm = norm.norms[norm.active]
            if not isinstance(conv, _ConvNd) or conv.transposed or not isinstance(norm, _BatchNorm):
                continue
            # In train mode, or without running statistics, its constants change with each batch.
            if not norm.training and norm.running_mean is not None:
                found[conv] = conv, norm, (sequence, name)
    return list(found.values())


def _leaves(module: nn.Module) -> Iterator[_Leaf]:
    """What a chain of modules does, one after the other; nothing where it is no plain chain."""
    if not _is_chain(module):
        return
    for name, child in module._modules.items():  # `named_children` leaves repeated ones out
        if child is not None and _is_chain(child):
            yield from _leaves(child)
        else:
            yield module, name


def _is_chain(module: nn.Module) -> TypeGuard[nn.Sequential]:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
