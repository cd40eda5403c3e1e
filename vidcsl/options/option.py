"""What is declared of a config key."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """One config key: the default (its type is the key's type), meaning and allowed values."""

    default: Any
    meaning: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
