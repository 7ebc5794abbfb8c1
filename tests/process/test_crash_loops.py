"""A run that crashes again and again without progress ends with exit code 76."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from gfgw_prod.process.exit_codes import CRASH_LOOP, CRASHED, PREEMPTED

from . import copies, runs

ONE_RESTART = {"NPROC": "1", "MAX_RESTARTS": "1"}


WAITS = "__import__('time').sleep(600)"


def encoding(agent: subprocess.Popen[str], run_dir: Path, rank: int = 0) -> None:
    """Wait until a rank is about to encode the bank."""
    runs.wait_until((run_dir / "stacks" / f"rank-{rank}.txt").exists, agent)
    time.sleep(0.2)  # from the file to the encoding


def counted(run_dir: Path) -> dict[str, int]:
    return dict(json.loads((run_dir / "starts.json").read_text()))


def test_run_that_always_crashes_ends_with_76_after_the_promised_number_of_starts(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    copy = copies.in_step(tmp_path, "assert self.step != 3, 'struck'") | ONE_RESTART
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
    copy = copies.while_encoding(tmp_path, WAITS)
    for _ in range(2):
        process = runs.start(runs.training(run_dir, "--resilience.max-no-progress", "1"), copy)
        encoding(process, run_dir)
        process.terminate()
        assert runs.outcome_of(process).code == PREEMPTED
    assert json.loads((run_dir / "starts.json").read_text()) == {"step": 0, "starts": 0}
    assert not (run_dir / "stacks").exists()


def test_run_that_is_preempted_through_any_rank_while_it_starts_goes_on(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    copy = copies.while_encoding(tmp_path, WAITS) | {"NPROC": "2"}
    agent = runs.start(runs.elastic(run_dir), copy)
    encoding(agent, run_dir, rank=1)
    os.kill(runs.workers_of(agent.pid)[1], signal.SIGTERM)
    outcome = runs.outcome_of(agent)
    assert outcome.code == PREEMPTED, outcome.stderr
    assert "restart" not in outcome.stderr
    assert counted(run_dir) == {"step": 0, "starts": 0}


def test_crash_of_any_rank_while_it_starts_counts_although_the_launcher_tells_the_others_to_stop(
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "run"
    copy = copies.while_encoding(tmp_path, WAITS) | {"NPROC": "2", "MAX_RESTARTS": "0"}
    for starts in (1, 2):
        agent = runs.start(runs.elastic(run_dir), copy)
        encoding(agent, run_dir, rank=starts - 1)
        os.kill(runs.workers_of(agent.pid)[starts - 1], signal.SIGKILL)  # once rank 0, once rank 1
        assert runs.outcome_of(agent).code == CRASHED
        shutil.rmtree(run_dir / "stacks")  # a rank that is killed leaves its file
        assert counted(run_dir) == {"step": 0, "starts": starts}


def test_start_with_bad_input_is_no_crash_although_rank_0_is_stopped_before_it_can_say_so(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    runs.train(run_dir)
    copy = copies.changed(tmp_path, copies.RUN_CLOSES, before=f"                world.is_main and {WAITS}\n")
    refused = runs.execute(runs.elastic(run_dir, "--seed", "5"), copy | {"NPROC": "2"})
    assert "seed" in refused.complaint
    assert counted(run_dir)["starts"] == 0


def test_node_told_to_stop_while_rank_0_on_another_encodes_the_bank_takes_the_start_back(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    # Both ranks are encoding, not in a collective: in one, a rank that misses its peer would crash.
    at_it = f"open('{tmp_path}/at-it-' + __import__('os').environ['RANK'], 'w').close()"
    copy = copies.while_encoding(tmp_path, f"{at_it}; {WAITS}")
    meeting = {"NNODES": "2", "NPROC": "1", "RDZV_ENDPOINT": f"localhost:{runs.free_port()}", "LOCAL_ADDR": "localhost"}
    agents = [runs.start(runs.elastic(run_dir), copy | meeting) for _ in range(2)]
    try:
        runs.wait_until(lambda: len([*tmp_path.glob("at-it-*")]) == 2, agents[0])
        agents.sort(key=lambda agent: max(runs.workers_of(agent.pid)))  # by the rank on each node
        for agent in reversed(agents):
            agent.terminate()
            assert runs.outcome_of(agent, limit_seconds=60).code == PREEMPTED
            assert counted(run_dir) == {"step": 0, "starts": 0}
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()
