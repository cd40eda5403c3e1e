"""Corruptions of the test clips."""

from vidcsl.options.option import Option

CORRUPTIONS: dict[str, Option] = {
    "CORRUPT.NAMES": Option(
        ["gaussian_noise", "defocus_blur", "jpeg", "C/h264", "freezing", "static_rotation"],
        "corruptions to test (C/ before suite C's); P, C or all: whole suites; empty: none",
    ),
    "CORRUPT.MAX_CLIPS": Option(0, "test videos corrupted, evenly chosen; 0: all", minimum=0),
}
