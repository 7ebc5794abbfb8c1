"""TensorBoard drawn by a headless Chromium, after a run was killed and resumed."""

from __future__ import annotations

import itertools
import json
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ..process import debian, runs

QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic")
CURVE = (255, 112, 67)  # colour of TensorBoard's first run


@pytest.fixture(scope="module")
def address(killed_and_resumed: Path) -> Iterator[str]:
    """Address of a TensorBoard that shows a run that was killed between two checkpoints and resumed."""
    debian.require("Chromium", ["chromium"], ["chromium"])
    port = runs.free_port()
    program = str(Path(runs.GFGW[0]).parent / "tensorboard")
    server = runs.start([program, "--logdir", str(killed_and_resumed.parent), "--port", str(port)])
    runs.wait_until(lambda: runs.listens(port), server)
    there = f"http://127.0.0.1:{port}"
    runs.wait_until(lambda: read_json(f"{there}/data/runs"), server)
    yield there
    server.terminate()
    runs.outcome_of(server)


def read_json(address: str) -> list:
    with urllib.request.urlopen(address, timeout=30) as answer:
        return list(json.load(answer))


def screenshot(address: str, picture: Path) -> np.ndarray:
    """Screenshot of the browser, ``(h, w, 3)``."""
    profile = f"--user-data-dir={picture.parent / 'profile'}"
    looks = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1400,1000")
    patience = "--virtual-time-budget=20000"
    command = ["chromium", *looks, *QUIET, "--no-first-run", profile, patience, f"--screenshot={picture}", address]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with Image.open(picture) as image:
        return np.asarray(image.convert("RGB"))


def is_drawn(address: str, picture: Path, shows: Callable[[np.ndarray], bool]) -> bool:
    """Whether one of three screenshots shows it: a busy machine may draw nothing within the browser's virtual time."""
    return any(shows(screenshot(address, picture)) for _ in range(3))


def test_served_curve_is_continuous(address: str) -> None:
    [run] = read_json(f"{address}/data/runs")
    points = read_json(f"{address}/data/plugin/scalars/scalars?run={run}&tag=loss/total")
    steps = [step for _, step, _ in points]
    assert steps == [runs.BATCH * step for step in range(1, runs.STEPS + 1)]
    grids = read_json(f"{address}/data/plugin/images/images?run={run}&tag=samples&sample=0")
    assert all(a["step"] < b["step"] for a, b in itertools.pairwise(grids))
    assert grids[-1]["step"] == runs.BATCH * runs.STEPS


def test_charts_are_drawn(address: str, tmp_path: Path) -> None:
    def curves(drawn: np.ndarray) -> bool:
        return (drawn == CURVE).all(axis=2).sum() > 500

    assert is_drawn(f"{address}/#custom_scalars", tmp_path / "charts.png", curves)


def test_grids_are_drawn(address: str, tmp_path: Path) -> None:
    def grids(drawn: np.ndarray) -> bool:
        grey = (np.ptp(drawn[190:, 370:].astype(int), axis=2) == 0) & (drawn[190:, 370:, 0] < 230)
        return grey.sum() > 20_000  # the page background is lighter

    assert is_drawn(f"{address}/#images", tmp_path / "grids.png", grids)
