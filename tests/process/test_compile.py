"""With ``train.compile`` a tiny run computes the same up to rounding, and goes on in place. Compiling takes minutes."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from . import copies, runs

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


@pytest.mark.timeout(1200)
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
@pytest.mark.skipif(sys.platform != "linux", reason="recovery in place needs /proc")
def test_ranks_go_on_without_a_lost_one_which_compiles_before_it_joins(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--thorough"):
        pytest.skip("--thorough: compiling takes a minute of two cores")
    steps, graphs = 6, tmp_path / "graphs"
    options = (*runs.SMALL, *NETWORK, "--train.total-kimg", str(steps * runs.SMALL_BATCH / 1000))
    options = (*options, "--train.compile", "true")
    runs.train(tmp_path / "undisturbed", *options)
    copy = copies.in_step(
        tmp_path,
        "import os, time",
        "from torch._dynamo.utils import counters",
        "dies = self.world.rank == 1 and self.step == 3 and self.membership.generation == 0",
        "dies and os.kill(os.getpid(), 9)",
        "while self.membership.generation == 1 and self.membership._heard_of == 1: time.sleep(0.01)",
        "found = self.world.rank, self.step, counters['stats']['unique_graphs']",
        f"print(*found, file=open('{graphs}', 'a'), flush=True)",
    )
    command = runs.elastic(tmp_path / "run", *options, "--resilience.in-place", "true")
    outcome = runs.execute(command, copy | {"NPROC": "2"})
    assert outcome.code == 0, outcome.stderr
    assert "ranks were lost: now 1, before 2; the run goes on after step 3" in outcome.stderr
    assert "ranks joined: now 2, before 1; the run goes on after step 3" in outcome.stderr
    assert runs.digests(tmp_path / "run")[steps] == runs.digests(tmp_path / "undisturbed")[steps]
    compiled = {(rank, step): count for rank, step, count in (map(int, line.split()) for line in graphs.open())}
    for rank in (0, 1):
        assert compiled[rank, steps - 1] == compiled[rank, 3] > 0
