"""Whole runs and commands on a pretended GPU: no tensor is on the wrong device, and results are reproducible."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import gfgw_prod
from benchmarks.gpu.variants import VARIANTS
from gfgw_prod.settings.config import Config

from ..process import runs
from .driver import NAME, pretended_gpu
from .pretended import DeviceError
from .steps import counted_step

BATCH = 64
KIMG = BATCH / 1000  # of one step


def config(run_dir: Path, steps: int, **changes: Any) -> Config:
    """Settings of a short digits run with a checkpoint every second step."""
    short: dict[str, Any] = {
        "run": {"dir": run_dir, "device": "cuda"},
        "train": {"batch_size": BATCH, "cell_size": 32, "total_kimg": steps * KIMG, "one_step_share": 0.5},
        # Schedules of four steps, so that a run of two is their beginning.
        "transport": {"epsilon_kimg": 4 * KIMG, "structure_weight_kimg": 4 * KIMG},
        "consistency": {"kimg": 4 * KIMG},
        "optimizer": {"decay_kimg": 4 * KIMG},
        "checkpoint": {"every_kimg": 2 * KIMG},
        "generator": {"model_channels": 8},
        "evaluation": {"every_kimg": 0},
        "resilience": {"audit_every_steps": 2},
        "telemetry": {"progress": "off", "log_every_kimg": KIMG, "samples_every_kimg": 2 * KIMG, "sample_grid": 2},
    }
    for section, settings in changes.items():
        short[section] = short.get(section, {}) | settings
    return gfgw_prod.load_config("digits", **short)


def train(run_dir: Path, steps: int, **changes: Any) -> None:
    with pretended_gpu():
        assert gfgw_prod.train(config(run_dir, steps, **changes))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps."""
    directory = tmp_path_factory.mktemp("gpu") / "run"
    train(directory, 4)
    return directory


def test_losses_are_the_cpus_but_for_rounding(run_dir: Path, tmp_path: Path) -> None:
    gfgw_prod.train(config(tmp_path / "run", 4, run={"device": "cpu"}))
    expected = runs.losses(tmp_path / "run")
    assert runs.losses(run_dir) == {step: pytest.approx(values, rel=1e-3) for step, values in expected.items()}


def test_resumed_run_ends_with_the_same_weights(run_dir: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", 2)
    train(tmp_path / "run", 4)
    assert runs.digests(tmp_path / "run")[4] == runs.digests(run_dir)[4]


def test_audits_agree(run_dir: Path) -> None:
    last = [record for record in runs.records(run_dir) if "run/audits" in record][-1]
    assert (last["run/audits"], last["run/wrong_computations"]) == (2, 0)


def test_run_names_the_gpu(run_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(run_dir, 4)
    assert NAME in capfd.readouterr().err


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_keeps_tensors_on_their_devices(name: str, tmp_path: Path) -> None:
    changes = VARIANTS[name]
    smaller = {
        "generator": {"channel_mult": [1], **changes.get("generator", {})},
        "resilience": {"audit_every_steps": 0},
    }
    train(tmp_path / "run", 2, **{**changes, **smaller})
    assert math.isfinite(runs.records(tmp_path / "run")[-1]["loss/total"])


def test_dinov2_and_lpips_in_bf16() -> None:
    changes = {
        "generator": {"model_channels": 16, "channel_mult": [1, 1], "num_blocks": 1},
        "features": {"image_size": 28},
        "train": {"batch_size": 4, "cell_size": 2},
    }
    assert counted_step("seed_report", changes, computes=True, rows=40).waits == 2


def test_commands(run_dir: Path, tmp_path: Path) -> None:
    with pretended_gpu():
        runs.printed_by(
            *("sample", str(run_dir), "--device", "cuda", "--num", "20"),
            *("--out", str(tmp_path / "samples")),
        )
        figures = runs.printed_by(
            *("evaluate", str(run_dir), "--device", "cuda", "--num", "64", "--metrics", runs.METRICS, "--json")
        )
    assert (tmp_path / "samples" / "000019.png").exists()
    assert "memorisation" in figures


def test_misplaced_tensor_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from gfgw_prod.distributed import cells

    monkeypatch.setattr(cells, "to_device", lambda tensor, device: tensor)
    with pytest.raises(DeviceError, match=r"same device.* at "):
        counted_step("digits", {"train": {"batch_size": 16, "cell_size": 16}})


def test_further_wait_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from gfgw_prod.distributed import cells

    monkeypatch.setattr(cells, "to_device", lambda tensor, device: tensor.to(device, non_blocking=True))
    assert counted_step("digits", {"train": {"batch_size": 16, "cell_size": 16}}).waits > 2
