"""The group in a video's path: which clips were cut from one source."""

import re
from pathlib import Path

from vidcsl.errors import UserError

# Clips named as in UCF101; searched in the path under the root, so the class is part of the group.
GROUP_PATTERN = r"^(.+_g\d+)_c\d+"


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A regular expression whose first bracket is the group. Raises UserError where it is not."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"the group pattern {pattern!r} is malformed: {error}") from error
    if compiled.groups < 1:
        raise UserError(f"the group pattern {pattern!r} needs a bracket around the group")
    return compiled


def group_of(video: str, pattern: re.Pattern[str]) -> str:
    """The group of a path like `class/name.mp4`; without a match it is a group of its own."""
    match = pattern.search(video)
    return (match[1] if match else None) or str(Path(video).with_suffix(""))
