"""What a reader must know before believing the numbers, in a sentence each."""

from collections.abc import Sequence

from vidcsl.report.summary import Tree, attack_title, interval, number, percent

FEW = 100  # videos: an accuracy is then known to about ten points


def warnings(results: Tree, *, damaged: Sequence[str]) -> list[str]:
    """Of failed checks, of too few videos, of training and test videos that were left out."""
    found = [
        f"{attack_title(name)}: not so, “{check['name']}”; robustness may be overstated."
        for name, checks in results["attack_checks"].items()
        for check in checks.get("checks", [])
        if isinstance(check, dict) and not check.get("passed")
    ]
    return [*found, *_few(results), *_missing(results, damaged), *_chance(results)]


def _few(results: Tree) -> list[str]:
    videos = number(results["data"].get("test_videos"))
    if videos is None or videos >= FEW:
        return []
    return [f"Only {videos:.0f} test videos: differences of a few points mean nothing."]


def _missing(results: Tree, damaged: Sequence[str]) -> list[str]:
    left_out = results["data"].get("left_out") or []
    told = []
    if damaged:
        told.append(f"{len(damaged)} training videos could not be read and were replaced.")
    if left_out:
        told.append(f"{len(left_out)} test videos could not be read and were left out.")
    return told


def _chance(results: Tree) -> list[str]:
    """An accuracy whose interval holds chance says nothing about the features."""
    top1, chance = (
        number(results[section].get(key))
        for section, key in (("clean", "linear_top1"), ("data", "chance"))
    )
    seen = interval(top1, results["data"].get("test_videos"))
    if seen is None or chance is None or seen[0] > chance:
        return []
    return [
        f"The linear probe’s {percent(top1)} cannot be told from chance ({percent(chance)}): what "
        "follows is about features that know nothing."
    ]
