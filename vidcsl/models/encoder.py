"""The encoder contract: clips in, features out; chunks, heads and cost."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vidcsl.errors import UserError
from vidcsl.io import return_freed_memory
from vidcsl.models.batchnorm import keep_batchnorm_in_use
from vidcsl.registry import Option, Registry

# ----------------------------------------------------------------------
# The repeated blocks of any network: what is recomputed, compiled or cut up as one.

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


# ----------------------------------------------------------------------
# Forward and backward chunk by chunk: the batch is bounded by the loss, not by activations.
#
# Contrastive losses want all embeddings of a large batch at once, but only the embeddings. So the
# activations of a chunk are dropped after its forward pass and computed again when its gradient
# comes: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
# RepL4NLP 2021 (GradCache). One more forward pass buys a batch of any size.


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
    norms = keep_batchnorm_in_use(module) if module else nullcontext()

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


# ----------------------------------------------------------------------
# What every encoder is: [0, 1] clips in, features out, with normalisation inside.

ENCODERS: Registry[Callable[..., "Encoder"]] = Registry(
    "MODEL.NAME",
    default="r2plus1d_18",
    meaning="encoder",
    shared={
        "WIDTH": Option(0, "channels of the first stage; 0: the published number", minimum=0),
        "DEPTH": Option(
            0,
            "most blocks of a stage (of a video ViT: all its blocks); 0: the published number",
            minimum=0,
        ),
    },
)

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]

# Mean and standard deviation of RGB, in units of [0, 1] pixels.
NORMALISATIONS: dict[str, Statistics] = {
    # of Kinetics-400, in torchvision's video weights
    "kinetics": ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # of PySlowFast, and of the MViT that torchvision took from it
    "pyslowfast": ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "dpn": ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3),
    "symmetric": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


class Encoder(nn.Module):
    """A backbone behind the contract that pretraining, evaluation, attacks and corruptions rely on.

    Args:
        backbone: module from normalised clips `[N, 3, T, S, S]` to features `[N, feature_dim]`. Its
            `tokens(clips) -> [N, L, C]`, if it has one, gives what it pools these from.
        feature_dim: length of a feature vector.
        clip_frames: frames T of a clip.
        frame_size: side S of the square frames, pixels.
        normalisation: a name in `NORMALISATIONS`.

    In training mode, clips pass `chunk` at a time where that is not 0: see `chunks`. They have the
    layout that 3-D convolutions are faster in, `channels_last`, where that is not switched off.
    """

    mean: Tensor
    std: Tensor
    chunk: int = 0
    channels_last: bool = True

    def __init__(
        self,
        backbone: nn.Module,
        *,
        feature_dim: int,
        clip_frames: int,
        frame_size: int,
        normalisation: str = "kinetics",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.feature_dim, self.clip_frames, self.frame_size = feature_dim, clip_frames, frame_size
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.ones(1, 3, 1, 1, 1), persistent=False)
        self.normalise_by(normalisation)

    def normalise_by(self, name: str, *, bgr: bool = False) -> None:
        """Normalise by the statistics of this name from now on.

        Args:
            name: in `NORMALISATIONS`.
            bgr: they were laid over BGR pixels as they stand: red got the mean that is listed last.
        """
        self.normalisation = name
        mean, std = (torch.tensor(each) for each in NORMALISATIONS[name])
        self.mean.copy_((mean.flip(0) if bgr else mean).view(1, 3, 1, 1, 1))
        self.std.copy_((std.flip(0) if bgr else std).view(1, 3, 1, 1, 1))

    def forward(self, clips: Tensor) -> Tensor:
        """Features `[N, D]` of clips `[N, 3, T, S, S]` with pixels in [0, 1]."""
        if self.training and self.chunk:
            return in_chunks(self._features, clips, size=self.chunk)
        return self._features(clips)

    def tokens(self, clips: Tensor) -> Tensor:
        """What the features are pooled from, one vector a place in space and time: `[N, L, C]`.

        Raises:
            UserError: the backbone has none.
        """
        if not hasattr(self.backbone, "tokens"):
            raise UserError(f"{type(self.backbone).__name__} gives no tokens, only pooled features")
        tokens: Tensor = self.backbone.tokens(self.normalised(clips))  # type: ignore[operator]
        return tokens

    def _features(self, clips: Tensor) -> Tensor:
        features: Tensor = self.backbone(self.normalised(clips))
        return features

    def normalised(self, clips: Tensor) -> Tensor:
        """The clips `[N, 3, T, H, W]` in [0, 1], as the backbone takes them."""
        normalised = (clips - self.mean) / self.std
        layout = torch.channels_last_3d if self.channels_last else torch.contiguous_format
        return normalised.contiguous(memory_format=layout)


def published_or(value: int, published: int) -> int:
    """A size that was asked for; 0 is the published one."""
    return value or published


def shallow(blocks: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Blocks of each stage, of none more than `depth`; 0: as published."""
    return tuple(min(count, depth) for count in blocks) if depth else blocks


def flat(maps: Tensor) -> Tensor:
    """Feature maps `[N, C, T, H, W]` as tokens `[N, T * H * W, C]`."""
    return maps.flatten(2).transpose(1, 2)


# ----------------------------------------------------------------------
# What sits on top of an encoder: projectors for pretraining, a linear layer for classes.


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


# ----------------------------------------------------------------------
# What an encoder costs: parameters, and FLOPs of one clip by fvcore.


@dataclass(frozen=True)
class Cost:
    """Of one clip: parameters, and fused multiply-adds (what papers call FLOPs)."""

    parameters: int
    flops: int


def cost_of(encoder: Encoder) -> Cost:
    """Count on a clip of the encoder's own size, in eval mode."""
    from fvcore.nn import FlopCountAnalysis  # warns of torch's plans when it is imported

    was_training = encoder.training
    encoder.eval()
    size, device = encoder.frame_size, encoder.mean.device
    clip = torch.zeros(1, 3, encoder.clip_frames, size, size, device=device)
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    counted = FlopCountAnalysis(encoder, clip)
    counted.set_op_handle("aten::scaled_dot_product_attention", _attention)
    counted.unsupported_ops_warnings(False)
    flops = int(counted.total())
    encoder.train(was_training)
    return Cost(sum(each.numel() for each in encoder.parameters()), flops)


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Multiply-adds of fused attention, which fvcore does not know: scores and weighted sum."""
    del outputs
    query, key, value = (each.type().sizes() for each in inputs[:3])
    batch = 1
    for size in query[:-2]:
        batch *= size
    return int(batch * query[-2] * key[-2] * (query[-1] + value[-1]))
