"""The high-frequency component of clips, which AdvCL takes as one more view."""

import torch
from torch import Tensor

RADIUS = 0.25  # of the disc of frequencies that is cut out, as a share of the frame's side


def high_frequencies(clips: Tensor) -> Tensor:
    """Each frame without its low spatial frequencies, clamped to [0, 1].

    Fan et al. (NeurIPS 2021) cut out a disc of radius 8 in the spectrum of 32 x 32 images; here the
    radius grows with the frames.

    Args:
        clips: `[..., S, S]` in [0, 1].
    """
    side = clips.shape[-1]
    with torch.autocast(clips.device.type, enabled=False):
        spectrum = torch.fft.fft2(clips.float())
        steps = torch.fft.fftfreq(side, 1 / side, device=clips.device)  # signed, 0 first
        low = steps[:, None].square() + steps.square() <= (RADIUS * side) ** 2
        passed = torch.fft.ifft2(spectrum.masked_fill(low, 0)).real
    return passed.clamp(0, 1).to(clips.dtype)
