"""A process that has nothing more to do, or cannot go on, leaves with its code whatever its threads are doing."""

from __future__ import annotations

import signal
from pathlib import Path

from . import runs

# A state of some megabytes and a run of one step.
LARGE = (
    *("--generator.model-channels", "96", "--generator.num-blocks", "2", "--generator.channel-mult", "[1,2]"),
    *("--train.batch-size", "32", "--train.cell-size", "32", "--train.total-kimg", "0.032"),
    *("--telemetry.sample-grid", "1"),
)


def test_finished_run_with_a_large_state_is_started_again_and_again(tmp_path: Path) -> None:
    for _ in range(3):
        runs.train(tmp_path / "run", *LARGE)


def test_interrupt_within_a_save_lets_the_save_end(tmp_path: Path) -> None:
    many = ("--train.total-kimg", "3.2", "--checkpoint.every-kimg", "0.032", "--checkpoint.keep", "100")
    process = runs.start(runs.training(tmp_path / "run", *LARGE, *many))
    runs.wait_until((tmp_path / "run" / "checkpoints" / "step-00000002").exists, process)
    process.send_signal(signal.SIGINT)
    outcome = runs.outcome_of(process)
    assert outcome.code == 130, outcome.stderr
    assert outcome.stderr.splitlines()[-1].startswith("gfgw: interrupted")
    saved = sorted(runs.digests(tmp_path / "run"))
    assert saved == list(range(1, len(saved) + 1))
