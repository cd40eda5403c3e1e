"""The suites of corruptions and their strengths, as tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from vidcsl.robustness.corruptions import blur, camera, photometric, temporal, weather
from vidcsl.robustness.corruptions import codec as digital
from vidcsl.robustness.corruptions import codec as stream
from vidcsl.robustness.corruptions import photometric as noise

# ----------------------------------------------------------------------
# The published corruptions and their parameters, and this project's own, as data.
#
# Suite P: UCF101-P, HMDB51-P, Kinetics400-P (Schiappa et al., CVPR 2023, arXiv:2207.01398).
# Suite C: Mini Kinetics-C and Mini SSv2-C (Yi et al., NeurIPS 2021, arXiv:2110.06513).
# Suite V: this project's additions; no published figures can be compared with theirs.
#
# Lengths in pixels were published for frames of 224 x 224; they are not rescaled for other sizes.

SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Corruption:
    """A function, and the values of its parameters at severities 1 to 5.

    Args:
        category: as in the published scores: noise, blur, digital, ...
        function: `(contiguous clips, generators=..., **parameters) -> new clips`.
        parameters: five values each.
        scored: whether it counts in the suite's scores.
        note: differences from the published code, and what a reader of its figures must know.
    """

    category: str
    function: Callable[..., Tensor | stream.Recovered]
    parameters: Mapping[str, Sequence[Any]]
    scored: bool = True
    note: str = ""

    @property
    def over_time(self) -> bool:
        """Whether what happens to a frame depends on the frames beside it."""
        function = self.function
        function = function.func if isinstance(function, partial) else function
        return function in OVER_TIME

    def at(self, severity: int) -> dict[str, Any]:
        """The function's keyword arguments at a severity in 1..5."""
        return {name: values[severity - 1] for name, values in self.parameters.items()}


OVER_TIME = (
    blur.frame_averaging,
    digital.fixed_quantiser,
    digital.h264,
    digital.h264_bit_rate,
    digital.h265,
    digital.h265_bit_rate,
    stream.bit_error,
    stream.nal_loss,
    stream.packet_loss,
    temporal.box_jumbling,
    temporal.frame_drop,
    temporal.frame_rate,
    temporal.freezing,
    temporal.jumbling,
    temporal.reverse_sampling,
    temporal.sampling,
)

_mpeg2 = partial(digital.fixed_quantiser, encoder="mpeg2video")
_mpeg4 = partial(digital.fixed_quantiser, encoder="mpeg4")
# Ticks are counted against the frame rate of UCF101 and of most of Kinetics, and that of SSv2.
_frame_rate = partial(temporal.frame_rate, source_rate=25)
_frame_rate_ssv2 = partial(temporal.frame_rate, source_rate=12)

_QUANTISER_NOTE = (
    "published: -q:v {}; the codec stops at 31, so the steps go evenly from the published first "
    "value to 31"
)
_OWN_LENGTH_NOTE = "published code shortens the clip; here kept frames are repeated"
_SSV2_NOTE = "Mini SSv2-C's instead of {}"
_BIT_RATE_NOTE = "not one of the 12; the clip's own rate in H.264 at CRF 23 is the source rate"
_STREAM_NOTE = "acts on the clip coded by H.264 at CRF 23"
_RATE_NOTE = ", at the rate of a frame of 340 x 256"

_SUITE_P = {
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
        note="at 8 and 10 published code cuts the soft edge off, which brightens by about 1 %",
    ),
    "motion_blur": Corruption(
        "blur",
        blur.motion_blur,
        {"radius": (10, 15, 15, 15, 20), "sigma": (3, 5, 8, 12, 15)},
        note="angle from U(-45, 45) degrees, per frame",
    ),
    "zoom_blur": Corruption(
        "blur",
        blur.zoom_blur,
        {"stop": (1.11, 1.16, 1.21, 1.26, 1.31), "step": (0.01, 0.01, 0.02, 0.02, 0.03)},
    ),
    "jpeg": Corruption("digital", digital.jpeg, {"quality": (25, 18, 15, 10, 7)}),
    "mpeg2": Corruption(
        "digital",
        _mpeg2,
        {"quantiser": (20, 23, 26, 29, 31)},
        note=_QUANTISER_NOTE.format("20 40 60 80 100"),
    ),
    "mpeg4": Corruption(
        "digital",
        _mpeg4,
        {"quantiser": (15, 19, 23, 27, 31)},
        note=_QUANTISER_NOTE.format("15 30 45 60 75"),
    ),
    "static_rotation": Corruption(
        "camera", camera.static_rotation, {"degrees": (7.5, 15, 30, 45, 90)}
    ),
    "random_rotation": Corruption(
        "camera", camera.random_rotation, {"degrees": (7, 13, 19, 25, 31)}, note="per frame"
    ),
    "translation": Corruption(
        "camera",
        camera.translation,
        {"offset": (8, 16, 24, 32, 40)},
        note="per frame; published code crops a larger frame, here the edge is repeated",
    ),
    "sampling": Corruption(
        "temporal", temporal.sampling, {"period": (2, 4, 8, 16, 32)}, note=_OWN_LENGTH_NOTE
    ),
    "reverse_sampling": Corruption(
        "temporal", temporal.reverse_sampling, {"period": (2, 4, 8, 16, 32)}, note=_OWN_LENGTH_NOTE
    ),
    "jumbling": Corruption(
        "temporal",
        temporal.jumbling,
        {"segment": (32, 16, 8, 4, 2)},
        note="as published the segments shrink: severity 5 moves frames least",
    ),
    "box_jumbling": Corruption(
        "temporal",
        temporal.box_jumbling,
        {"segments": (4, 9, 16, 25, 36)},
        note="published code takes these as lengths, which leaves 16 frames whole from 3 on",
    ),
    "freezing": Corruption(
        "temporal",
        temporal.freezing,
        {"probability": (0.12, 0.24, 0.36, 0.48, 0.6)},
        note=_OWN_LENGTH_NOTE,
    ),
}

_SUITE_C = {
    "shot_noise": Corruption("noise", noise.shot_noise, {"rate": (60, 25, 12, 5, 3)}),
    "motion_blur": Corruption(
        "blur",
        blur.frame_averaging,
        {"reach": (3, 5, 7, 9, 11)},
        note="published code drops the frames at either end; here the end frames stand in",
    ),
    "fog": Corruption(
        "weather",
        weather.fog,
        {"scale": (1.5, 2, 2.5, 2.5, 3), "decay": (2, 2, 1.7, 1.5, 1.4)},
        note="one layer for the clip",
    ),
    "rain": Corruption(
        "weather",
        weather.rain,
        {
            "area_per_drop": (770, 770, 770, 500, 400),
            "length": (10, 30, 60, 60, 80),
            "darkening": (0.8, 0.8, 0.7, 0.6, 0.5),
        },
        note="redrawn per frame",
    ),
    "contrast": Corruption(
        "photometric", photometric.contrast, {"factor": (0.5, 0.4, 0.3, 0.2, 0.1)}
    ),
    "brightness": Corruption(
        "photometric", photometric.brightness, {"increase": (0.1, 0.2, 0.3, 0.4, 0.5)}
    ),
    "saturate": Corruption(
        "photometric",
        photometric.saturate,
        {"factor": (0.3, 0.1, 2, 5, 20), "increase": (0, 0, 0, 0.1, 0.2)},
        note="as published 1 and 2 take colour away, 3 to 5 add it",
    ),
    "bit_error": Corruption(
        "digital",
        stream.bit_error,
        {"bytes_per_error": (100_000, 50_000, 30_000, 20_000, 10_000)},
        note=_STREAM_NOTE + _RATE_NOTE,
    ),
    "packet_loss": Corruption(
        "digital",
        stream.packet_loss,
        {"probability": (0.01, 0.02, 0.03, 0.04, 0.06)},
        note=_STREAM_NOTE + ", sent as datagrams of 1,316 bytes" + _RATE_NOTE,
    ),
    "h264": Corruption("digital", digital.h264, {"crf": (23, 30, 37, 44, 51)}),
    "h265": Corruption("digital", digital.h265, {"crf": (27, 33, 39, 45, 51)}),
    "frame_rate": Corruption(
        "temporal",
        _frame_rate,
        {"rate": (20, 16, 12, 9, 6)},
        note="of 25 frames a second; frames are held",
    ),
    "motion_blur_ssv2": Corruption(
        "blur",
        blur.frame_averaging,
        {"reach": (1, 2, 3, 4, 6)},
        scored=False,
        note=_SSV2_NOTE.format("motion_blur"),
    ),
    "frame_rate_ssv2": Corruption(
        "temporal",
        _frame_rate_ssv2,
        {"rate": (10, 8, 6, 4, 2)},
        scored=False,
        note=_SSV2_NOTE.format("frame_rate") + "; of 12 frames a second",
    ),
    "h264_bit_rate": Corruption(
        "digital",
        digital.h264_bit_rate,
        {"divisor": (2, 4, 8, 16, 32)},
        scored=False,
        note=_BIT_RATE_NOTE,
    ),
    "h265_bit_rate": Corruption(
        "digital",
        digital.h265_bit_rate,
        {"divisor": (2, 4, 8, 16, 32)},
        scored=False,
        note=_BIT_RATE_NOTE,
    ),
}

_SUITE_V = {
    "low_light": Corruption(
        "noise",
        noise.low_light,
        {
            "light": (0.4, 0.25, 0.15, 0.08, 0.04),
            "photons": (250,) * 5,
            "read_noise": (1.0, 1.0, 1.5, 1.5, 2.0),
        },
    ),
    "exposure_flicker": Corruption(
        "photometric", photometric.exposure_flicker, {"stops": (0.25, 0.5, 0.75, 1.0, 1.5)}
    ),
    "banding": Corruption("photometric", photometric.banding, {"levels": (24, 16, 10, 6, 4)}),
    "snow": Corruption(
        "weather",
        weather.snow,
        {
            "area_per_flake": (1500, 900, 600, 400, 250),
            "radius": (2.0, 2.5, 3.0, 3.5, 4.0),
            "veil": (0.05, 0.1, 0.15, 0.2, 0.25),
        },
    ),
    "occlusion": Corruption("camera", camera.occlusion, {"share": (0.05, 0.1, 0.2, 0.3, 0.45)}),
    "camera_shake": Corruption(
        "camera",
        camera.camera_shake,
        {"shift": (0.01, 0.02, 0.035, 0.05, 0.07), "degrees": (0.5, 1.0, 1.75, 2.5, 3.5)},
    ),
    "pixelate": Corruption(
        "digital",
        digital.pixelate,
        {"share": (0.6, 0.5, 0.4, 0.3, 0.25)},
        note="ImageNet-C's (Hendrycks and Dietterich, ICLR 2019)",
    ),
    "nal_loss": Corruption(
        "digital",
        stream.nal_loss,
        {"probability": (0.02, 0.05, 0.1, 0.2, 0.4)},
        note=_STREAM_NOTE + " in slices of at most 1,200 bytes",
    ),
    "frame_drop": Corruption(
        "temporal", temporal.frame_drop, {"probability": (0.12, 0.24, 0.36, 0.48, 0.6)}
    ),
}

SUITES: dict[str, dict[str, Corruption]] = {"P": _SUITE_P, "C": _SUITE_C, "V": _SUITE_V}

# How many corruptions count in each suite's scores.
SCORED = {suite: sum(row.scored for row in rows.values()) for suite, rows in SUITES.items()}


def strength(corruption: Corruption, severity: int) -> str:
    """What a severity stands for, in words: "radius 3, alias blur 0.1"."""
    values = corruption.at(severity).items()
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in values)


def markdown(suite: str) -> str:
    """A suite as the Markdown table of docs/corruptions.md, with one row per corruption."""
    rows = [["name", "category", "severities 1 to 5", "note"], ["---"] * 4]
    for name, corruption in SUITES[suite].items():
        values = "; ".join(
            f"{parameter.replace('_', ' ')} {' '.join(f'{value:g}' for value in row)}"
            for parameter, row in corruption.parameters.items()
        )
        mark = name if corruption.scored else f"{name} (not scored)"
        rows.append([mark, corruption.category, values, corruption.note])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
