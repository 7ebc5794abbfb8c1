"""The sinks ``wandb`` (Weights & Biases) and ``mlflow``. Extras of these names install the clients.

Both send in the background. A resumed run continues its run in the tracker. The axis of all curves is images seen.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gfgw_prod.settings.nested import flatten
from gfgw_prod.telemetry.sinks import Values

PROJECT = "gfgw_prod"  # unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME says otherwise
MOST_PARAMETERS = 100  # of one request to MLflow


class Wandb:
    """Records in Weights & Biases, which is set by its own variables, such as ``WANDB_MODE=offline``."""

    def __init__(self, run_dir: Path, settings: Mapping[str, Any], step: int):
        import wandb

        self._picture = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=_kept(run_dir, "wandb", lambda: uuid.uuid4().hex),
            name=str(run_dir),
            resume="allow",
            config=dict(settings),
            settings=wandb.Settings(console="off"),
        )
        self._run.define_metric("*", step_metric="images")

    def record(self, step: int, images: int, values: Values) -> None:
        self._run.log({**dict(_numbers(values)), "images": images})

    def picture(self, images: int, tag: str, grid: Tensor) -> None:
        self._run.log({tag: self._picture(grid.permute(1, 2, 0).numpy()), "images": images})

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """Records in MLflow, at ``MLFLOW_TRACKING_URI``."""

    def __init__(self, run_dir: Path, settings: Mapping[str, Any], step: int):
        import mlflow
        from mlflow.entities import Metric, Param

        self._client, self._metric, self._sent = mlflow.MlflowClient(), Metric, list[Any]()
        self._id = _kept(run_dir, "mlflow", lambda: self._begin(str(run_dir), settings, Param))
        self._client.update_run(self._id, status="RUNNING")

    def _begin(self, name: str, settings: Mapping[str, Any], parameter: Callable[[str, str], Any]) -> str:
        """Create a run with all settings as parameters; returns its id."""
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(project)
        where = experiment.experiment_id if experiment else self._client.create_experiment(project)
        run_id: str = self._client.create_run(where, run_name=name).info.run_id
        found = [parameter(key, str(value)) for key, value in flatten(settings).items()]
        for begin in range(0, len(found), MOST_PARAMETERS):
            self._client.log_batch(run_id, params=found[begin : begin + MOST_PARAMETERS])
        return run_id

    def record(self, step: int, images: int, values: Values) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(tag, value, now, images) for tag, value in _numbers(values)]
        self._sent = [self._client.log_batch(self._id, metrics=metrics, synchronous=False)]

    def picture(self, images: int, tag: str, grid: Tensor) -> None:
        self._client.log_image(self._id, grid.permute(1, 2, 0).numpy(), key=tag, step=images, synchronous=False)

    def close(self) -> None:
        for sent in self._sent:
            sent.wait()
        self._client.set_terminated(self._id)


def _numbers(values: Values) -> Iterator[tuple[str, float]]:
    """The values by tag; those of each rank by tag and rank."""
    for tag, value in values.items():
        if isinstance(value, Sequence):
            yield from ((f"{tag}/{rank}", each) for rank, each in enumerate(value))
        else:
            yield tag, value


def _kept(run_dir: Path, tracker: str, make: Callable[[], str]) -> str:
    """The id of the run in a tracker: made once, and again for a copy of the run directory."""
    file, place = run_dir / f"{tracker}.json", str(run_dir.resolve())
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if known.get("place") != place:
        known = {"id": make(), "place": place}
        file.write_text(json.dumps(known), encoding="utf-8")
    return str(known["id"])
