"""With ``train.compile`` a tiny run computes the same up to rounding. Compiling takes minutes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from . import runs

NETWORK = ("--generator.dropout", "0", "--data.flip", "false", "--telemetry.sample-grid", "1")


@pytest.mark.timeout(1200)
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
def test_compiled_steps_have_the_losses_of_eager_ones(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--thorough"):
        pytest.skip("--thorough: compiling takes a minute of two cores")
    options = (*runs.SMALL, *NETWORK, "--train.total-kimg", str(2 * runs.SMALL_BATCH / 1000))
    for name in ("true", "false"):
        runs.train(tmp_path / name, *options, "--train.compile", name)
    compiled, eager = (runs.losses(tmp_path / name) for name in ("true", "false"))
    assert compiled.keys() == {1, 2}
    for step, terms in compiled.items():
        assert terms == pytest.approx(eager[step], rel=1e-3, abs=1e-6), step
