"""Trackers: where the numbers of a run go besides its log, behind one small protocol.

Each keeps its run id in the run's folder, so that a resumed run continues in the same place.
Servers and accounts are configured as the libraries document it (`WANDB_MODE`,
`MLFLOW_TRACKING_URI`).
"""

import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vidcsl.errors import UserError
from vidcsl.io import write_atomically
from vidcsl.run_folder import RunFolder


class Tracker(Protocol):
    """Receives the numbers of a run while it runs."""

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Numbers at a step."""

    def close(self) -> None:
        """Flush; the run has ended."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker needs to know of a run.

    Attributes:
        name: of the run.
        project: groups several runs: W&B's project, MLflow's experiment.
        folder: of the run.
        config: options by dotted key.
    """

    name: str
    project: str
    folder: RunFolder
    config: Mapping[str, Any]


class TensorBoard:
    """Event files in `tensorboard/` of the run's folder."""

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._writer: Any = SummaryWriter(str(run.folder.tensorboard))

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Numbers at a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the event file."""
        self._writer.close()


class WandB:
    """Weights & Biases; `WANDB_MODE=offline` keeps everything in the run's folder."""

    def __init__(self, run: TrackedRun) -> None:
        wandb = _import_extra("wandb", extra="wandb")
        self._run: Any = wandb.init(
            project=run.project,
            name=run.name,
            dir=str(run.folder.path),
            config=dict(run.config),
            id=_run_ids(run.folder).get("wandb"),
            resume="allow",
        )
        _keep_run_id(run.folder, "wandb", self._run.id)

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Numbers at a step."""
        # As a value: wandb's own step must not decrease, and a resumed run may repeat steps.
        self._run.log({**values, "step": step})

    def close(self) -> None:
        """Upload what is left, and end the run."""
        self._run.finish()


class MLflow:
    """MLflow; without `MLFLOW_TRACKING_URI`, in MLflow's default store."""

    def __init__(self, run: TrackedRun) -> None:
        self._client: Any = _import_extra("mlflow.tracking", extra="mlflow").MlflowClient()
        self._id = _run_ids(run.folder).get("mlflow", "")
        if not self._id:
            found = self._client.get_experiment_by_name(run.project)
            experiment = (
                found.experiment_id if found else self._client.create_experiment(run.project)
            )
            self._id = str(self._client.create_run(experiment, run_name=run.name).info.run_id)
            for key, value in run.config.items():
                self._client.log_param(self._id, key, value)
            _keep_run_id(run.folder, "mlflow", self._id)

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Numbers at a step."""
        for name, value in values.items():
            plain = re.sub(r"[^\w\-. :/]", "_", name)  # MLflow refuses names such as R@1
            self._client.log_metric(self._id, plain, value, step=step)

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._id)


TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


def open_trackers(names: Sequence[str], run: TrackedRun) -> list[Tracker]:
    """The trackers with these names, in TRACKERS.

    Raises:
        UserError: a library is missing, or a tracker cannot be reached.
    """
    opened: list[Tracker] = []
    for name in names:
        try:
            opened.append(TRACKERS[name](run))
        except UserError:
            raise
        except Exception as error:  # each library has errors of its own
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"LOG.TRACKERS: {name} cannot start: {reason}") from error
    return opened


def _import_extra(module: str, *, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"LOG.TRACKERS: {extra} is missing: pip install 'vidcsl[{extra}]'"
        ) from None


def _run_ids(folder: RunFolder) -> dict[str, str]:
    """The ids that trackers gave this run, by tracker."""
    path = folder.path / "trackers.json"
    ids: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    return ids


def _keep_run_id(folder: RunFolder, tracker: str, run_id: str) -> None:
    text = json.dumps({**_run_ids(folder), tracker: run_id})
    write_atomically(folder.path / "trackers.json", text + "\n")
