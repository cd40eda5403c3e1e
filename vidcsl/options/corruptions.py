"""Corruptions of the test clips."""

from vidcsl.options.option import Option

CORRUPTIONS: dict[str, Option] = {
    "CORRUPT.NAMES": Option(
        ["gaussian_noise", "defocus_blur", "jpeg", "C/h264", "freezing", "static_rotation"],
        "corruptions to test, such as jpeg or C/fog; P, C, V: what a suite's scores count; all",
    ),
    "CORRUPT.MAX_CLIPS": Option(0, "test videos corrupted, evenly chosen; 0: all", minimum=0),
    "CORRUPT.EXAMPLES": Option(
        4, "corruptions, those that hurt most, of which the report plays a clip", minimum=0
    ),
}
