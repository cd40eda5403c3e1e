"""mmaction2's R(2+1)D-34, a network of its own: see `r2plus1d_34_mmaction2`."""

from vidcsl.models.pretrained.layout import Layout, norm_eps

_START = r"(?:module\.)?backbone\."
_BLOCK = _START + r"(layer\d\.\d+)\."


def _split(theirs: str, ours: str) -> tuple[tuple[str, str], ...]:
    """A convolution in space, its BatchNorm and ReLU, and a convolution in time."""
    return tuple(
        (rf"{theirs}\.{name}\.(.+)", rf"{ours}.{number}.\{groups}")
        for name, number in (("conv_s", 0), ("bn_s", 1), ("conv_t", 3))
        for groups in (theirs.replace("(?:", "").count("(") + 1,)
    )


LAYOUT = Layout(
    meaning="mmaction2's R(2+1)D-34",
    encoders=("r2plus1d_34_mmaction2",),
    containers=("state_dict",),
    left_out=((r"(module\.)?cls_head\..+", "the classifier"),),
    renames=(
        *_split(_START + r"conv1\.conv", "stem"),
        (_START + r"conv1\.bn\.(.+)", r"stem.4.\1"),
        *_split(_BLOCK + r"conv1\.conv", r"\1.conv1.0"),
        *_split(_BLOCK + r"conv2\.conv", r"\1.conv2.0"),
        *_split(_BLOCK + r"downsample\.conv", r"\1.downsample.0"),
        (_BLOCK + r"(conv[12])\.bn\.(.+)", r"\1.\2.1.\3"),
        (_BLOCK + r"downsample\.bn\.(.+)", r"\1.downsample.1.\2"),
    ),
    # Its configs give the outer BatchNorms another eps, and leave the inner ones alone.
    changes=(norm_eps(r"stem\.4|layer.+\.(conv[12]|downsample)\.1", theirs=1e-3, ours=1e-5),),
    normalisation="imagenet",
)
