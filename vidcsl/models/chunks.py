"""Forward and backward chunk by chunk: the batch is bounded by the loss, not by activations.

Contrastive losses want all embeddings of a large batch at once, but only the embeddings. So the
activations of a chunk are dropped after its forward pass and computed again when its gradient
comes: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
RepL4NLP 2021 (GradCache). One more forward pass buys a batch of any size.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vidcsl.memory import return_freed_memory
from vidcsl.models.dual_norm import use_again


def in_chunks(function: Callable[[Tensor], Tensor], inputs: Tensor, *, size: int) -> Tensor:
    """`function(inputs)`, of which one chunk's activations are held at a time.

    Exact, dropout included, where rows do not depend on each other. A BatchNorm in training mode
    normalises each chunk by itself; its running statistics see each chunk once.

    Args:
        function: `[n, ...]` -> `[n, D]`, a module or a method of one.
        inputs: `[N, ...]`.
        size: rows of a chunk, at least 1.
    """
    chunks = inputs.split(size)
    if len(chunks) == 1 or not torch.is_grad_enabled():
        return torch.cat([function(chunk) for chunk in chunks])
    module = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    return torch.cat([recomputed(function, chunk, owner=module) for chunk in chunks])


def recomputed(function: Callable[..., Any], *inputs: Any, owner: nn.Module | None) -> Any:
    """`function(*inputs)`, whose activations are dropped and computed again when a gradient comes.

    Exact, dropout included; running statistics of `owner` see the inputs once.

    Args:
        function: of tensors and whatever else.
        inputs: what it is called with.
        owner: the module that it computes with.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    device = next((each.device for each in inputs if isinstance(each, Tensor)), torch.device("cpu"))

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return _freed_memory_returned(device), _again(owner, device)

    return checkpoint(function, *inputs, use_reentrant=False, context_fn=contexts)


def _again(module: nn.Module | None, device: torch.device) -> AbstractContextManager[None]:
    """A block in which `module` computes once more what it computes next."""
    norms = use_again(module) if module else nullcontext()

    @contextmanager
    def block() -> Iterator[None]:
        with _freed_memory_returned(device), norms, _buffers_kept(module):
            yield

    return block()


@contextmanager
def _freed_memory_returned(device: torch.device) -> Iterator[None]:
    """Give what earlier chunks have freed back to the system first."""
    return_freed_memory(device)
    yield


@contextmanager
def _buffers_kept(module: nn.Module | None) -> Iterator[None]:
    """Within, `module` works on copies of its buffers: its running statistics see nothing."""
    owners = list(module.modules()) if module else []
    before = [dict(owner._buffers) for owner in owners]
    for owner, buffers in zip(owners, before, strict=True):
        owner._buffers.update({name: b if b is None else b.clone() for name, b in buffers.items()})
    try:
        yield
    finally:
        for owner, buffers in zip(owners, before, strict=True):
            owner._buffers.update(buffers)
