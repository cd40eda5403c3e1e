"""Where the numbers of a run go besides its log: trackers behind one small protocol.

Each keeps its run's id in the run's folder, so that a resumed run goes on in the same place.
Servers and accounts are found as the libraries find them (`WANDB_MODE`, `MLFLOW_TRACKING_URI`).
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vidcsl.engine.run_folder import RunFolder, write_atomically
from vidcsl.errors import UserError


class Tracker(Protocol):
    """What is told of a run while it runs."""

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Numbers at a step."""

    def close(self) -> None:
        """Write what is still held back."""


@dataclass(frozen=True)
class Run:
    """What a tracker is told at the start.

    Attributes:
        name: of the run.
        project: of several runs: W&B's project, MLflow's experiment.
        folder: of the run.
        config: options by dotted key.
    """

    name: str
    project: str
    folder: RunFolder
    config: Mapping[str, Any]


class TensorBoard:
    """Event files in `tensorboard/` of the run's folder."""

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._writer: Any = SummaryWriter(str(run.folder.tensorboard))

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Numbers at a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is still held back."""
        self._writer.close()


class WandB:
    """Weights & Biases; `WANDB_MODE=offline` keeps everything in the run's folder."""

    def __init__(self, run: Run) -> None:
        wandb = _import("wandb", extra="wandb")
        ids = _Ids(run.folder.path)
        self._run: Any = wandb.init(
            project=run.project,
            name=run.name,
            dir=str(run.folder.path),
            config=dict(run.config),
            id=ids.get("wandb"),
            resume="allow",
        )
        ids.keep("wandb", self._run.id)

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Numbers at a step."""
        # Not wandb's own step, which refuses to go back: a resumed run may repeat steps.
        self._run.log({**values, "step": step})

    def close(self) -> None:
        """Write what is still held back."""
        self._run.finish()


class MLflow:
    """MLflow; without `MLFLOW_TRACKING_URI`, where MLflow puts it."""

    def __init__(self, run: Run) -> None:
        tracking = _import("mlflow.tracking", extra="mlflow")
        self._client: Any = tracking.MlflowClient()
        ids = _Ids(run.folder.path)
        self._id: str = ids.get("mlflow") or self._create(run)
        ids.keep("mlflow", self._id)

    def _create(self, run: Run) -> str:
        experiment = self._client.get_experiment_by_name(run.project)
        number = (
            experiment.experiment_id if experiment else self._client.create_experiment(run.project)
        )
        made = self._client.create_run(number, run_name=run.name)
        for key, value in run.config.items():
            self._client.log_param(made.info.run_id, key, value)
        return str(made.info.run_id)

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Numbers at a step."""
        for name, value in values.items():
            # MLflow refuses a name with other characters, such as R@1.
            plain = re.sub(r"[^\w\-. :/]", "_", name)
            self._client.log_metric(self._id, plain, value, step=step)

    def close(self) -> None:
        """Tell that the run has ended."""
        self._client.set_terminated(self._id)


TRACKERS: dict[str, Callable[[Run], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


def open_trackers(names: Sequence[str], run: Run) -> list[Tracker]:
    """The trackers by name.

    Raises:
        UserError: a library is missing, or a tracker cannot be reached.
    """
    return [_open(name, run) for name in names]


def _open(name: str, run: Run) -> Tracker:
    try:
        return TRACKERS[name](run)
    except UserError:
        raise
    except Exception as error:  # each library has errors of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"LOG.TRACKERS: {name} cannot start: {reason}") from error


def _import(module: str, *, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"LOG.TRACKERS: {extra} is missing: pip install 'vidcsl[{extra}]'"
        ) from None


class _Ids:
    """Ids of a run with its trackers, by their names, in `trackers.json`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "trackers.json"

    def _read(self) -> dict[str, str]:
        return json.loads(self._path.read_text()) if self._path.exists() else {}

    def get(self, name: str) -> str | None:
        return self._read().get(name)

    def keep(self, name: str, value: str) -> None:
        write_atomically(self._path, json.dumps({**self._read(), name: value}) + "\n")
