"""A run that is told to stop saves its state, leaves with 75, and goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from gfgw_prod.resilience.exit_codes import PREEMPTED

from . import runs

SELDOM = ("--checkpoint.every-kimg", "1000")  # what is saved is saved because of the signal
SLOWLY = (*runs.UNHURRIED, "--telemetry.sample-grid", "16", *SELDOM)  # time to strike between two steps


def last_step(run_dir: Path) -> int:
    return max(runs.losses(run_dir), default=0) if (run_dir / "stats.jsonl").exists() else 0


def assert_goes_on(run_dir: Path, reference: Path, *command: str) -> None:
    """From a step that was not yet the last, to the weights of the undisturbed run."""
    (saved,) = runs.digests(run_dir)
    assert 0 < saved < runs.STEPS
    again = runs.execute([*command, "--telemetry.samples-every-kimg", "1000"], {"NPROC": "2"})
    assert again.code == 0, again.stderr
    assert f"from step-{saved:08d}" in again.stderr
    assert runs.digests(run_dir)[runs.STEPS] == runs.digests(reference)[runs.STEPS]
    assert runs.losses(run_dir) == runs.losses(reference)


def test_run_alone_saves_when_it_is_told_to_stop(reference: Path, tmp_path: Path) -> None:
    command = runs.training(tmp_path / "run", *SLOWLY)
    process = runs.start(command)
    runs.wait_until(lambda: last_step(tmp_path / "run") >= 2, process)
    process.send_signal(signal.SIGTERM)
    outcome = runs.outcome_of(process)
    assert outcome.code == PREEMPTED, outcome.stderr
    assert "told to stop at" in outcome.stderr
    assert_goes_on(tmp_path / "run", reference, *command)


def test_launcher_that_is_told_to_stop_waits_for_its_ranks_to_save(reference: Path, tmp_path: Path) -> None:
    command = runs.elastic(tmp_path / "run", *SLOWLY)
    agent = runs.start(command, {"NPROC": "2"})
    runs.wait_until(lambda: last_step(tmp_path / "run") >= 2, agent)
    agent.send_signal(signal.SIGUSR1)
    outcome = runs.outcome_of(agent)
    assert outcome.code == PREEMPTED, outcome.stderr
    assert "told to stop at" in outcome.stderr
    assert_goes_on(tmp_path / "run", reference, *command)


def test_one_signalled_rank_stops_all(reference: Path, tmp_path: Path) -> None:
    command = runs.elastic(tmp_path / "run", *SLOWLY)
    agent = runs.start(command, {"NPROC": "2"})
    runs.wait_until(lambda: last_step(tmp_path / "run") >= 2, agent)
    os.kill(runs.workers_of(agent.pid)[1], signal.SIGTERM)
    outcome = runs.outcome_of(agent)
    assert outcome.code == PREEMPTED, outcome.stderr
    assert_goes_on(tmp_path / "run", reference, *command)


def test_request_that_arrives_twice_at_once_is_one_and_later_ends_the_process(tmp_path: Path) -> None:
    command = runs.training(tmp_path / "run", *SELDOM, steps=10_000)
    process = runs.start(command)
    runs.wait_until(lambda: last_step(tmp_path / "run") >= 2, process)
    process.terminate()
    process.terminate()
    assert runs.outcome_of(process).code == PREEMPTED
    assert len(runs.digests(tmp_path / "run")) == 1
    assert last_step(tmp_path / "run") < 10_000

    process = runs.start(command)
    begun = last_step(tmp_path / "run")
    runs.wait_until(lambda: last_step(tmp_path / "run") >= begun + 2, process)
    os.kill(process.pid, signal.SIGSTOP)  # a step that takes long
    process.terminate()
    os.kill(process.pid, signal.SIGCONT)
    time.sleep(0.1)
    assert runs.outcome_of(process).code == PREEMPTED


def test_run_that_is_still_starting_leaves_at_once(tmp_path: Path) -> None:
    process = runs.start(runs.training(tmp_path / "run"))
    runs.wait_until((tmp_path / "run" / ".lock").exists, process)
    process.terminate()
    assert runs.outcome_of(process, limit_seconds=30).code == PREEMPTED
