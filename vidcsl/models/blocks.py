"""The repeated blocks of any network: what is recomputed, compiled or cut up as one."""

from collections.abc import Iterator

from torch import nn

_CONTAINERS = (nn.Sequential, nn.ModuleList)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The composite elements of the outermost lists in `module`, in order, none inside another.

    These are the residual, inception or transformer blocks; single layers of a list are left out.
    """
    return list(_walk(module))


def _walk(module: nn.Module) -> Iterator[nn.Module]:
    listed = type(module) in _CONTAINERS  # a subclass is a block of its own
    for child in module.children():
        if type(child) in _CONTAINERS or not listed:
            yield from _walk(child)
        elif any(True for _ in child.children()):
            yield child
