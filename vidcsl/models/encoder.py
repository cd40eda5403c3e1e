"""The encoder contract: [0, 1] clips in, features out, with normalisation inside.

Below the contract: the registry of encoders, forward passes in chunks, heads, and cost.
"""

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

ENCODERS: Registry[Callable[..., "Encoder"]] = Registry(
    "MODEL.NAME",
    default="r2plus1d_18",
    meaning="encoder",
    shared={
        "WIDTH": Option(0, "channels of the first stage; 0: the published number", minimum=0),
        "DEPTH": Option(
            0,
            "largest number of blocks per stage (video ViT: in total); 0: the published number",
            minimum=0,
        ),
    },
)

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]

# Mean and standard deviation of RGB, in units of [0, 1] pixels.
NORMALISATIONS: dict[str, Statistics] = {
    # Kinetics-400, torchvision's video weights
    "kinetics": ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # PySlowFast, and the MViT that torchvision took from it
    "pyslowfast": ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "dpn": ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3),
    "symmetric": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


class Encoder(nn.Module):
    """A backbone behind the contract that pretraining, evaluation, attacks and corruptions rely on.

    Normalisation belongs to the encoder, so that the eps of an attack means [0, 1] pixels
    everywhere else.

    Args:
        backbone: module from normalised clips `[N, 3, T, S, S]` to features `[N, feature_dim]`. An
            optional method `tokens(clips) -> [N, L, C]` returns what the features are pooled from.
        feature_dim: length of a feature vector.
        clip_frames: frames T of a clip.
        frame_size: side S of the square frames, pixels.
        normalisation: a name in `NORMALISATIONS`.

    Attributes:
        chunk: clips per forward pass in training mode; 0: all at once. See `in_chunks`.
        channels_last: whether clips use the memory layout in which 3-D convolutions are faster.
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
        """Replace the pixel statistics.

        Args:
            name: a name in `NORMALISATIONS`.
            bgr: the weights were trained on BGR pixels with the statistics in RGB order, so that
                red was normalised by the mean that is listed last.
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
        """The vectors that features are pooled from, one per place in space and time: `[N, L, C]`.

        Raises:
            UserError: the backbone has no tokens.
        """
        if not hasattr(self.backbone, "tokens"):
            raise UserError(f"{type(self.backbone).__name__} gives no tokens, only pooled features")
        tokens: Tensor = self.backbone.tokens(self.normalised(clips))  # type: ignore[operator]
        return tokens

    def _features(self, clips: Tensor) -> Tensor:
        features: Tensor = self.backbone(self.normalised(clips))
        return features

    def normalised(self, clips: Tensor) -> Tensor:
        """Clips `[N, 3, T, H, W]` in [0, 1], normalised for the backbone."""
        normalised = (clips - self.mean) / self.std
        layout = torch.channels_last_3d if self.channels_last else torch.contiguous_format
        return normalised.contiguous(memory_format=layout)


def shallow(blocks: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Blocks per stage, at most `depth` in each; 0 keeps the published numbers."""
    return tuple(min(count, depth) for count in blocks) if depth else blocks


def flat(maps: Tensor) -> Tensor:
    """Reshape feature maps `[N, C, T, H, W]` to tokens `[N, T * H * W, C]`."""
    return maps.flatten(2).transpose(1, 2)


# Forward and backward passes in chunks ------------------------------------------------------------
#
# A contrastive loss needs all embeddings of a large batch at once, but not the activations. So the
# activations of a chunk are dropped after its forward pass and recomputed for its backward pass:
# Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP
# 2021 (GradCache). One more forward pass allows a batch of any size.


def in_chunks(function: Callable[[Tensor], Tensor], inputs: Tensor, *, size: int) -> Tensor:
    """`function(inputs)` while memory holds the activations of one chunk at a time.

    Exact, dropout included, if the rows do not depend on each other. A BatchNorm in training mode
    normalises each chunk separately; its running statistics are updated once per chunk.

    Args:
        function: `[n, ...]` -> `[n, D]`, a module or a bound method of one.
        inputs: `[N, ...]`.
        size: rows per chunk, at least 1.
    """
    chunks = inputs.split(size)
    if len(chunks) == 1 or not torch.is_grad_enabled():
        return torch.cat([function(chunk) for chunk in chunks])
    module = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    return torch.cat([recomputed(function, chunk, owner=module) for chunk in chunks])


def recomputed(function: Callable[..., Any], *inputs: Any, owner: nn.Module | None) -> Any:
    """`function(*inputs)`, whose activations are dropped and recomputed in the backward pass.

    Exact, dropout included; the running statistics of `owner` are updated once.

    Args:
        function: takes `inputs`, tensors or other objects.
        inputs: its arguments.
        owner: the module whose BatchNorms and buffers it uses; None if it uses none.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    device = next((each.device for each in inputs if isinstance(each, Tensor)), torch.device("cpu"))

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        # Runs before the first pass. The second pass must use the BatchNorms that are in use now,
        # although a method with auxiliary ones (AdvProp) may have switched by then.
        batchnorm = keep_batchnorm_in_use(owner) if owner else nullcontext()

        @contextmanager
        def second_pass() -> Iterator[None]:
            return_freed_memory(device)
            with batchnorm, _buffers_kept(owner):
                yield

        return_freed_memory(device)  # memory that earlier chunks have freed
        return nullcontext(), second_pass()

    return checkpoint(function, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _buffers_kept(module: nn.Module | None) -> Iterator[None]:
    """Within, `module` works on copies of its buffers, so its running statistics stay."""
    owners = list(module.modules()) if module else []
    before = [dict(owner._buffers) for owner in owners]
    for owner, buffers in zip(owners, before, strict=True):
        owner._buffers.update({name: b if b is None else b.clone() for name, b in buffers.items()})
    try:
        yield
    finally:
        for owner, buffers in zip(owners, before, strict=True):
            owner._buffers.update(buffers)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a network in order: the units to recompute, compile or shard.

    They are the composite elements of the outermost lists in `module` (residual, inception or
    transformer blocks), none inside another. Single layers of a list do not count.
    """
    # Exact types: a subclass, such as torchvision's Conv2Plus1D, is a block and not a list.
    containers = (nn.Sequential, nn.ModuleList)
    blocks: list[nn.Module] = []
    for child in module.children():
        if type(child) in containers or type(module) not in containers:
            blocks += blocks_of(child)
        elif any(True for _ in child.children()):
            blocks.append(child)
    return blocks


# Heads and cost -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Norms:
    """Where a head has BatchNorm: between its layers (`hidden`) and at its end (`last`)."""

    hidden: bool = True
    last: bool = True


def projector(
    *, in_dim: int, hidden_dim: int, out_dim: int, layers: int, norms: Norms = Norms()
) -> nn.Module:
    """A multi-layer perceptron with ReLU; also the predictor of BYOL and MoCo v3.

    A BatchNorm at the end, as in SimCLR's released code and MoCo v3, centres the embeddings of a
    batch. Without it they first collapse to one point, and take hundreds of steps to separate.

    Args:
        in_dim, hidden_dim, out_dim: feature, hidden and embedding sizes.
        layers: number of linear layers; 0 returns the features.
        norms: places of BatchNorm; a layer without BatchNorm has a bias.
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


@dataclass(frozen=True)
class Cost:
    """Parameters, and fused multiply-adds for one clip (what papers call FLOPs)."""

    parameters: int
    flops: int


def cost_of(encoder: Encoder) -> Cost:
    """Count parameters and FLOPs for one clip of the encoder's own size, in eval mode."""
    from fvcore.nn import FlopCountAnalysis  # imported here: it prints deprecation warnings

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
