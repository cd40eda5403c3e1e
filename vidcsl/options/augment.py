"""Augmentation of training clips."""

from vidcsl.options.option import Option

AUGMENT: dict[str, Option] = {
    "AUGMENT.CROP_BY": Option(
        "decoder",
        "who cuts random crops: the decoder, from the file's own pixels, which costs least, or the "
        "device, from frames of DATA.SHORT_SIDE; the boxes are the same",
        ("decoder", "device"),
    ),
    "AUGMENT.CROP_AREA": Option([0.3, 1.0], "share of the frame that a random crop covers"),
    "AUGMENT.CROP_ASPECT": Option([0.5, 2.0], "width over height of a random crop"),
    "AUGMENT.FLIP": Option(0.5, "probability of a horizontal flip", minimum=0, maximum=1),
    "AUGMENT.JITTER": Option(
        [0.8, 0.8, 0.8, 0.2], "strength of brightness, contrast, saturation, hue"
    ),
    "AUGMENT.JITTER_PROBABILITY": Option(0.8, "of colour jitter", minimum=0, maximum=1),
    "AUGMENT.GRAY_PROBABILITY": Option(0.2, "of dropping colour", minimum=0, maximum=1),
    "AUGMENT.BLUR_PROBABILITY": Option([0.0], "of Gaussian blur: one value, or one for each view"),
    "AUGMENT.BLUR_SIGMA": Option([0.1, 2.0], "range of the blur's sigma, pixels"),
    "AUGMENT.STRENGTHS": Option(
        [1.0],
        "strength of crops and colours in equal parts of the training, 0 (none) to 1; other than "
        "1: AUGMENT.CROP_BY device",
    ),
    "AUGMENT.CORRUPTIONS": Option(
        ["P"], "corruptions to train with, as in CORRUPT.NAMES; equally likely"
    ),
    "AUGMENT.CORRUPTION_PROBABILITY": Option(
        0.0, "of corrupting a clip in one of these ways", minimum=0, maximum=1
    ),
    "AUGMENT.CORRUPTION_SEVERITIES": Option([1, 2, 3], "severities from 1 to 5, equally likely"),
    "AUGMENT.SOLARISE_PROBABILITY": Option([0.0], "of solarising: one value, or one for each view"),
    "AUGMENT.MOTION_PROBABILITY": Option(
        [0.0],
        "of taking what stands still out of a view, so that views of a video are alike by its "
        "motion, not by its scene: one value, or one for each view",
    ),
}
