"""Trackers and the watchdog."""

from collections.abc import Callable, Sequence
from pathlib import Path

from fvcore.common.config import CfgNode

from vidcsl.config import flat_values
from vidcsl.engine.run_folder import RunFolder
from vidcsl.engine.trackers import TRACKERS, Run, Tracker, open_trackers
from vidcsl.engine.watchdog import Watchdog
from vidcsl.errors import UserError


def build_trackers(cfg: CfgNode, folder: RunFolder) -> list[Tracker]:
    """The trackers of LOG.TRACKERS, of which the main process has some and the others none."""
    name = f"{cfg.NAME}/seed{cfg.SEED}"
    run = Run(name=name, project=cfg.LOG.PROJECT, folder=folder, config=flat_values(cfg))
    return open_trackers(cfg.LOG.TRACKERS, run)


def check_trackers(cfg: CfgNode) -> None:
    """Raise a UserError where LOG.TRACKERS names one that there is not."""
    for name in cfg.LOG.TRACKERS:
        if name not in TRACKERS:
            raise UserError(f"LOG.TRACKERS: {name!r} is not one of {', '.join(TRACKERS)}")


def build_watchdog(
    cfg: CfgNode, stacks: Path | None, *, workers: Callable[[], Sequence[int]]
) -> Watchdog:
    """As LOG.HANG_SECONDS and LOG.HANG_ENDS say; without `stacks`, the file to write, none."""
    if stacks is None:
        return Watchdog()
    ends_run = cfg.LOG.HANG_ENDS
    return Watchdog(cfg.LOG.HANG_SECONDS, path=stacks, workers=workers, ends_run=ends_run)
