"""The suites as Markdown tables, as docs/corruptions.md holds them."""

from vidcsl.robustness.corruptions.suites import SUITES, Corruption


def markdown(suite: str) -> str:
    """One row a corruption: name, category, the values at severities 1 to 5, and the note."""
    header = ["name", "category", "severities 1 to 5", "note"]
    rows = [_row(name, corruption) for name, corruption in SUITES[suite].items()]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _row(name: str, corruption: Corruption) -> list[str]:
    values = "; ".join(
        f"{parameter.replace('_', ' ')} {' '.join(f'{value:g}' for value in row)}"
        for parameter, row in corruption.parameters.items()
    )
    mark = name if corruption.scored else f"{name} (not scored)"
    return [mark, corruption.category, values, corruption.note]
