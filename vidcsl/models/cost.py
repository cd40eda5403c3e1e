"""What an encoder costs: parameters, and FLOPs of one clip by fvcore."""

import logging
from dataclasses import dataclass
from typing import Any

import torch

from vidcsl.models.encoder import Encoder


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
