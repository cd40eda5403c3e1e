"""The configs that come with vidcsl, found by name: `--cfg demo`."""

from pathlib import Path

_PACKAGE = Path(__file__).parent
# A wheel carries the configs inside the package; a source tree has them beside it.
CONFIGS = next(
    folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir()
)


def names() -> list[str]:
    """What may be named: `demo`, `studies/small`, ... (bases, which start with `_`, left out)."""
    return sorted(
        str(path.relative_to(CONFIGS).with_suffix(""))
        for path in CONFIGS.rglob("*.yaml")
        if not path.name.startswith("_")
    )


def find(config: str | Path) -> Path:
    """The file that is meant: a path as it stands or, where no file is there, a shipped name."""
    path = Path(config)
    if (path.exists() and not path.is_dir()) or str(config) not in names():
        return path
    return CONFIGS / f"{config}.yaml"
