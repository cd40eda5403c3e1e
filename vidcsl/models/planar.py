"""3-D convolutions over space or over time alone, computed as the 2-D convolutions that they are.

Maps `[N, C, T, H, W]` in the layout channels_last_3d lie in memory as `[N, T, H, W, C]`. There a
kernel (1, k, k) sees the images `[N * T, C, H, W]`, and a kernel (k, 1, 1) the images
`[N, C, T, H * W]`: both are views, channels last, and so are the matching views of the weights.
Libraries are faster at 2-D convolutions than at 3-D ones, over time most of all.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlanarConv3d(nn.Conv3d):
    """An `nn.Conv3d` with a kernel (1, k, k) or (k, 1, 1); its weights and maps stay 5-D.

    On CPUs with bfloat16 instructions it is also safer: given exactly two frames, the weight
    gradient of torch's 3-D kernel over time reads uninitialised memory (seen with torch 2.14).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve maps `[N, C, T, H, W]`, which are copied where they do not lie channels last."""
        maps = input.contiguous(memory_format=torch.channels_last_3d)
        assert not isinstance(self.padding, str)
        (time, *space), (before, *around) = self.stride, self.padding
        if self.kernel_size[0] == 1:
            # Cut as it lies in memory: the gradient of a slice is made in the slice's own order of
            # axes, and maps of another layout slow down all that comes before.
            frames = maps.permute(0, 2, 3, 4, 1)[:, ::time]
            kernel = self.weight.squeeze(2)
            images = frames.flatten(0, 1).permute(0, 3, 1, 2)
            images = F.conv2d(images, kernel, self.bias, space, around)
            return _channels_last(images.unflatten(0, frames.shape[:2]).transpose(1, 2))
        kernel = self.weight.squeeze(4)
        rows = F.conv2d(maps.flatten(3), kernel, self.bias, (time, 1), (before, 0))
        return _channels_last(rows.unflatten(3, maps.shape[3:]))


def _channels_last(maps: Tensor) -> Tensor:
    """The same maps `[N, C, T, H, W]` with the strides that channels_last_3d has.

    A dimension of size 1, one clip or one frame, may have any stride, and comes out of these views
    with another. Given such maps and a gradient in another layout, torch's BatchNorm returns a
    wrong gradient (seen with torch 2.14, of any precision).
    """
    last = maps.permute(0, 2, 3, 4, 1)
    return last.flatten().unflatten(0, last.shape).permute(0, 4, 1, 2, 3)


def planar(network: nn.Module) -> nn.Module:
    """Lay weights channels last; in place, make the convolutions planar where all of them can be.

    Only the class of convolutions changes: most are made inside blocks of torchvision's, and names
    and parameters must stay. Maps of a network with other convolutions too would change their
    layout on the way.
    """
    convs = [each for each in network.modules() if isinstance(each, nn.Conv3d)]
    if all(map(_is_planar, convs)):
        for each in convs:
            each.__class__ = PlanarConv3d
    return network.to(memory_format=torch.channels_last_3d)


def _is_planar(conv: nn.Conv3d) -> bool:
    simple = conv.groups == 1 and conv.dilation == (1, 1, 1) and conv.padding_mode == "zeros"
    over_space = conv.kernel_size[0] == 1 and conv.padding[0] == 0
    over_time = conv.kernel_size[1:] == conv.stride[1:] == (1, 1) and conv.padding[1:] == (0, 0)
    return simple and (over_space or over_time)
