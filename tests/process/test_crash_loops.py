"""A run that comes no further is not started for ever."""

from __future__ import annotations

import json
from pathlib import Path

from gfgw_prod.resilience.exit_codes import CRASH_LOOP, CRASHED, PREEMPTED

from . import copies, runs

STEP = '            watch.progress(f"in step {self.step + 1}")\n'
BLOCK = "            ids = torch.arange(block, min(block + block_rows, self.total))\n"
ONE_RESTART = {"NPROC": "1", "MAX_RESTARTS": "1"}


def test_run_that_always_crashes_ends_with_76_after_the_promised_number_of_starts(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    crash = f"{STEP}            assert self.step != 3, 'struck'\n"
    copy = copies.changed(tmp_path, "trainer.py", STEP, crash) | ONE_RESTART
    command = runs.elastic(run_dir, "--resilience.max-no-progress", "1")
    first = runs.execute(command, copy)
    assert first.code == CRASHED, first.stderr
    assert "restart 1 of 1" in first.stderr
    saved = runs.digests(run_dir)
    again = runs.execute(command, copy)  # queued again
    assert again.code == CRASH_LOOP, again.stderr
    assert (first.stderr + again.stderr).count("AssertionError: struck") == 3  # one made the checkpoint, then 1 + 1
    (line,) = (line for line in again.stderr.splitlines() if line.startswith("gfgw: "))
    assert str(run_dir / "starts.json") in line
    assert "resilience.max_no_progress" in line
    assert runs.digests(run_dir) == saved


def test_run_that_is_preempted_again_and_again_without_progress_goes_on(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    slow = "            __import__('time').sleep(600)\n"
    copy = copies.changed(tmp_path, "features/bank.py", BLOCK, slow + BLOCK)
    for _ in range(3):
        process = runs.start(runs.training(run_dir, "--resilience.max-no-progress", "1"), copy)
        runs.wait_until((run_dir / "stacks").exists, process)
        process.terminate()
        assert runs.outcome_of(process).code == PREEMPTED
    assert json.loads((run_dir / "starts.json").read_text()) == {"step": 0, "starts": 0}
    assert not (run_dir / "stacks").exists()
