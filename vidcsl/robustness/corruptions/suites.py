"""The published corruptions and their parameters, as data.

Suite P: UCF101-P, HMDB51-P, Kinetics400-P (Schiappa et al., CVPR 2023, arXiv:2207.01398).
Suite C: Mini Kinetics-C (Yi et al., NeurIPS 2021, arXiv:2110.06513), without bit error and packet
loss, which act on the stored stream.

Lengths in pixels were published for frames of 224 x 224; they are not rescaled for other sizes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from vidcsl.robustness.corruptions import (
    blur,
    camera,
    digital,
    noise,
    photometric,
    temporal,
    weather,
)

SEVERITIES = (1, 2, 3, 4, 5)
# How many corruptions each suite was published with.
PUBLISHED = {"P": 18, "C": 12}


@dataclass(frozen=True)
class Corruption:
    """A function, and for each of its parameters the values at severities 1 to 5."""

    category: str
    function: Callable[..., Tensor]
    parameters: Mapping[str, Sequence[Any]]

    def at(self, severity: int) -> dict[str, Any]:
        """The function's keyword arguments at a severity in 1..5."""
        return {name: values[severity - 1] for name, values in self.parameters.items()}


_mpeg2 = partial(digital.fixed_quantiser, encoder="mpeg2video")
_mpeg4 = partial(digital.fixed_quantiser, encoder="mpeg4")
# Ticks are counted against the frame rate of UCF101 and of most of Kinetics.
_frame_rate = partial(temporal.frame_rate, source_rate=25)

SUITES: dict[str, dict[str, Corruption]] = {
    "P": {
        "gaussian_noise": Corruption(
            "noise", noise.gaussian_noise, {"sigma": (0.08, 0.12, 0.18, 0.26, 0.38)}
        ),
        "shot_noise": Corruption("noise", noise.shot_noise, {"rate": (250, 100, 50, 30, 15)}),
        "impulse_noise": Corruption(
            "noise", noise.impulse_noise, {"amount": (0.03, 0.06, 0.09, 0.17, 0.27)}
        ),
        "speckle_noise": Corruption(
            "noise", noise.speckle_noise, {"sigma": (0.15, 0.2, 0.25, 0.3, 0.35)}
        ),
        "defocus_blur": Corruption(
            "blur",
            blur.defocus_blur,
            {"radius": (3, 4, 6, 8, 10), "alias_blur": (0.1, 0.5, 0.5, 0.5, 0.5)},
        ),
        "motion_blur": Corruption(
            "blur", blur.motion_blur, {"radius": (10, 15, 15, 15, 20), "sigma": (3, 5, 8, 12, 15)}
        ),
        "zoom_blur": Corruption(
            "blur",
            blur.zoom_blur,
            {"stop": (1.11, 1.16, 1.21, 1.26, 1.31), "step": (0.01, 0.01, 0.02, 0.02, 0.03)},
        ),
        "jpeg": Corruption("digital", digital.jpeg, {"quality": (25, 18, 15, 10, 7)}),
        # Published: -q:v 20 40 60 80 100 and 15 30 45 60 75. Both codecs stop at 31, so from the
        # second or third severity on these are one and the same. The steps here go evenly from
        # the published first value to the codecs' last.
        "mpeg2": Corruption("digital", _mpeg2, {"quantiser": (20, 23, 26, 29, 31)}),
        "mpeg4": Corruption("digital", _mpeg4, {"quantiser": (15, 19, 23, 27, 31)}),
        "static_rotation": Corruption(
            "camera", camera.static_rotation, {"degrees": (7.5, 15, 30, 45, 90)}
        ),
        "random_rotation": Corruption(
            "camera", camera.random_rotation, {"degrees": (7, 13, 19, 25, 31)}
        ),
        "translation": Corruption("camera", camera.translation, {"offset": (8, 16, 24, 32, 40)}),
        "sampling": Corruption("temporal", temporal.sampling, {"period": (2, 4, 8, 16, 32)}),
        "reverse_sampling": Corruption(
            "temporal", temporal.reverse_sampling, {"period": (2, 4, 8, 16, 32)}
        ),
        # As published, the segments shrink: severity 5 moves frames least.
        "jumbling": Corruption("temporal", temporal.jumbling, {"segment": (32, 16, 8, 4, 2)}),
        # The released code takes these numbers as the length of a segment, which leaves clips of
        # 16 frames whole from severity 3 on.
        "box_jumbling": Corruption(
            "temporal", temporal.box_jumbling, {"segments": (4, 9, 16, 25, 36)}
        ),
        "freezing": Corruption(
            "temporal", temporal.freezing, {"probability": (0.12, 0.24, 0.36, 0.48, 0.6)}
        ),
    },
    "C": {
        "shot_noise": Corruption("noise", noise.shot_noise, {"rate": (60, 25, 12, 5, 3)}),
        "motion_blur": Corruption("blur", blur.frame_averaging, {"reach": (3, 5, 7, 9, 11)}),
        "fog": Corruption(
            "weather", weather.fog, {"scale": (1.5, 2, 2.5, 2.5, 3), "decay": (2, 2, 1.7, 1.5, 1.4)}
        ),
        "rain": Corruption(
            "weather",
            weather.rain,
            {
                "area_per_drop": (770, 770, 770, 500, 400),
                "length": (10, 30, 60, 60, 80),
                "darkening": (0.8, 0.8, 0.7, 0.6, 0.5),
            },
        ),
        "contrast": Corruption(
            "photometric", photometric.contrast, {"factor": (0.5, 0.4, 0.3, 0.2, 0.1)}
        ),
        "brightness": Corruption(
            "photometric", photometric.brightness, {"increase": (0.1, 0.2, 0.3, 0.4, 0.5)}
        ),
        # As published, 1 and 2 take colour away, 3 to 5 add it.
        "saturate": Corruption(
            "photometric",
            photometric.saturate,
            {"factor": (0.3, 0.1, 2, 5, 20), "increase": (0, 0, 0, 0.1, 0.2)},
        ),
        "h264": Corruption("digital", digital.h264, {"crf": (23, 30, 37, 44, 51)}),
        "h265": Corruption("digital", digital.h265, {"crf": (27, 33, 39, 45, 51)}),
        "frame_rate": Corruption("temporal", _frame_rate, {"rate": (20, 16, 12, 9, 6)}),
    },
}
