"""What is found, and how it is told."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        topic, name: the heading that it stands under, and what it is.
        there: whether it is there and in order.
        words: what was seen, or what to do.
        broken: it is needed, and runs will fail; otherwise what is not there is only missed.
    """

    topic: str
    name: str
    there: bool
    words: str = ""
    broken: bool = False

    def __str__(self) -> str:
        state = "ok" if self.there else "broken" if self.broken else "missing"
        return f"  {state:7} {self.name}  {self.words}".rstrip()


def report(findings: Iterable[Finding]) -> str:
    """The findings by topic, one a line."""
    found = list(findings)
    topics = dict.fromkeys(finding.topic for finding in found)
    return "\n".join(
        line
        for topic in topics
        for line in (topic, *(str(each) for each in found if each.topic == topic))
    )
