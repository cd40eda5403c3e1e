"""BatchNorms in eval mode as part of the convolutions before them: fewer passes over the maps."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TypeGuard

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_weights

from vidcsl.models.dual_norm import NormSet

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
    pairs = [] if _is_compiled(module) else _pairs(module)
    convs = [(conv, conv.weight, conv.bias) for conv, _, _ in pairs]
    norms = [(sequence, name, sequence._modules[name]) for _, _, (sequence, name) in pairs]
    try:
        for conv, norm, (sequence, name) in pairs:
            conv.weight, conv.bias = _fused(conv, norm)
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
            conv, norm = chain._modules[before], _in_use(sequence._modules[name])
            if isinstance(conv, _ConvNd) and not conv.transposed and _is_constant(norm):
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


def _in_use(module: nn.Module | None) -> nn.Module | None:
    return module.norms[module.active] if isinstance(module, NormSet) else module


def _is_constant(norm: nn.Module | None) -> TypeGuard[_BatchNorm]:
    return isinstance(norm, _BatchNorm) and not norm.training and norm.running_mean is not None


def _is_compiled(module: nn.Module) -> bool:
    return any(hasattr(each.forward, "_torchdynamo_orig_callable") for each in module.modules())


def _fused(conv: _ConvNd, norm: _BatchNorm) -> tuple[nn.Parameter, nn.Parameter]:
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    with torch.no_grad():
        return fuse_conv_bn_weights(
            conv.weight, conv.bias, mean, var, norm.eps, norm.weight, norm.bias
        )
