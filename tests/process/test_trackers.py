"""Runs record in MLflow and in Weights & Biases: the real clients, with files in place of servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from . import runs

READ = """
import json, sys
import mlflow

client = mlflow.MlflowClient()
experiment = client.get_experiment_by_name("gfgw_prod")
found = []
for run in client.search_runs([experiment.experiment_id]):
    history = client.get_metric_history(run.info.run_id, "loss/total")
    found.append({
        "status": run.info.status,
        "seed": run.data.params["seed"],
        "losses": {each.step: each.value for each in history},
        "ranks": "memory/resident_bytes/0" in run.data.metrics,
        "pictures": len([each for each in client.list_artifacts(run.info.run_id, "images") if "samples" in each.path]),
    })
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the extras install, beside the locked environment."""
    place = tmp_path_factory.mktemp("clients")
    extras = tomllib.loads((runs.ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    uv = (str(Path(sys.executable).with_name("uv")), "pip", "install", "--quiet", "--python", sys.executable)
    command = (*uv, "--target", str(place), "--constraint", "requirements.lock", *extras["mlflow"], *extras["wandb"])
    done = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the clients cannot be installed: {done.stderr.strip()[-300:]}")
    return place


def test_killed_and_resumed_run_is_one_run_of_each_tracker(clients: Path, tmp_path: Path) -> None:
    run_dir, store, offline = tmp_path / "run", tmp_path / "store", tmp_path / "offline"
    offline.mkdir()
    surroundings = {
        "PYTHONPATH": str(clients),
        "MLFLOW_TRACKING_URI": store.as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(offline),
    }
    options = ("--telemetry.sinks", "mlflow,wandb", "--telemetry.samples-every-kimg", "0.1")
    for steps in (2, 4):
        done = runs.execute(runs.training(run_dir, *options, steps=steps), surroundings)
        assert done.code == 0, done.stderr
        assert "cannot be written" not in done.stderr
    done = runs.execute([sys.executable, "-c", READ], surroundings)
    assert done.code == 0, done.stderr
    [found] = json.loads(done.stdout)
    assert (found["status"], found["seed"], found["ranks"]) == ("FINISHED", "0", True)
    own = {each["images"]: each["loss/total"] for each in runs.records(run_dir) if "loss/total" in each}
    assert {int(images): loss for images, loss in found["losses"].items()} == own
    assert found["pictures"] > 0
    [name] = {each.name.removeprefix("run-") for each in offline.glob("wandb/offline-run-*/run-*.wandb")}
    files = list(offline.glob(f"wandb/offline-run-*/run-{name}"))
    assert len(files) == 2  # one for each start, of the same run
    assert all(b"loss/total" in each.read_bytes() for each in files)


def test_missing_client_is_named(tmp_path: Path) -> None:
    done = runs.execute(runs.training(tmp_path / "run", "--telemetry.sinks", "mlflow"), {"PYTHONPATH": os.devnull})
    assert done.code == 2
    assert done.stderr.endswith("telemetry.sinks: mlflow needs the package mlflow; install it\n")
