"""A run that gets a stop signal saves its state, exits with 75, and resumes to the same weights."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from gfgw_prod.process.exit_codes import PREEMPTED
from gfgw_prod.process.signals import SAME_REQUEST_SECONDS

from . import copies, runs

SELDOM = ("--checkpoint.every-kimg", "1000")  # so that only a signal causes a save
SLOWLY = (*runs.UNHURRIED, "--telemetry.sample-grid", "16", *SELDOM)  # leaves time for a signal between two steps


def assert_saves_at_a_signal_and_resumes(
    run_dir: Path, reference: Path, command: list[str], send_signal: Callable[[int], None]
) -> None:
    """Signal a process by its id in the middle of training, then resume to the weights of the undisturbed run."""
    sent = run_dir.parent / "sent"
    copy = copies.held_in_step(run_dir.parent, 3, until=sent)
    process = runs.start(command, copy | {"NPROC": "2"})
    runs.wait_until(lambda: runs.last_step(run_dir) >= 1, process)
    send_signal(process.pid)
    time.sleep(2)  # for a launcher to forward it
    sent.touch()
    outcome = runs.outcome_of(process)
    assert outcome.code == PREEMPTED, outcome.stderr
    assert "told to stop at" in outcome.stderr
    (saved,) = runs.digests(run_dir)
    assert 0 < saved < runs.STEPS
    again = runs.train(run_dir, *SELDOM, "--telemetry.samples-every-kimg", "1000")
    assert f"from step-{saved:08d}" in again.stderr
    assert runs.digests(run_dir)[runs.STEPS] == runs.digests(reference)[runs.STEPS]
    assert runs.losses(run_dir) == runs.losses(reference)


def test_single_process_saves_at_a_signal(reference: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert_saves_at_a_signal_and_resumes(
        run_dir, reference, runs.training(run_dir, *SLOWLY), lambda alone: os.kill(alone, signal.SIGTERM)
    )


def test_interrupted_launcher_waits_for_its_ranks_to_save(reference: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert_saves_at_a_signal_and_resumes(
        run_dir, reference, runs.elastic(run_dir, *SLOWLY), lambda agent: os.kill(agent, signal.SIGINT)
    )


def test_one_signalled_rank_stops_all(reference: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert_saves_at_a_signal_and_resumes(
        run_dir,
        reference,
        runs.elastic(run_dir, *SLOWLY),
        lambda agent: os.kill(runs.workers_of(agent)[1], signal.SIGTERM),
    )


def test_signal_that_arrives_twice_at_once_is_one_request(tmp_path: Path) -> None:
    process = runs.start(runs.training(tmp_path / "run", *SELDOM, steps=10_000))
    runs.wait_until(lambda: runs.last_step(tmp_path / "run") >= 2, process)
    process.terminate()
    process.terminate()
    assert runs.outcome_of(process).code == PREEMPTED
    assert len(runs.digests(tmp_path / "run")) == 1
    assert runs.last_step(tmp_path / "run") < 10_000


def test_second_signal_later_ends_the_process_without_saving(tmp_path: Path) -> None:
    copy = copies.in_step(tmp_path, "self.step == 2 and __import__('time').sleep(60)")
    run_dir = tmp_path / "run"
    process = runs.start(runs.training(run_dir, *SELDOM, steps=10_000), copy)
    runs.wait_until(lambda: runs.last_step(run_dir) == 2, process)
    time.sleep(1)  # the third step has begun, and waits
    process.terminate()
    time.sleep(SAME_REQUEST_SECONDS + 1)
    assert process.poll() is None
    process.terminate()
    assert runs.outcome_of(process, limit_seconds=20).code == PREEMPTED
    assert not any((run_dir / "checkpoints").glob("step-*"))


def test_run_that_is_still_starting_exits_at_once(tmp_path: Path) -> None:
    process = runs.start(runs.training(tmp_path / "run"))
    runs.wait_until((tmp_path / "run" / ".lock").exists, process)
    process.terminate()
    assert runs.outcome_of(process, limit_seconds=30).code == PREEMPTED


def test_rank_signalled_before_its_first_line_ends_the_job(tmp_path: Path) -> None:
    agent = runs.start(runs.elastic(tmp_path / "run"), {"NPROC": "2"})
    workers = runs.wait_until(lambda: len(found := runs.workers_of(agent.pid)) == 2 and found, agent)
    os.kill(workers[0], signal.SIGTERM)
    outcome = runs.outcome_of(agent, limit_seconds=60)
    assert outcome.code == PREEMPTED, outcome.stderr
    assert "restart" not in outcome.stderr


def test_preempted_job_does_not_wait_for_a_slow_upload(reference: Path, tmp_path: Path) -> None:
    copy = copies.changed(tmp_path, copies.UPLOAD_BEGINS, before="        __import__('time').sleep(600)\n")
    run_dir = tmp_path / "run"
    upload = ("--checkpoint.upload-to", str(tmp_path / "target"))
    agent = runs.start(runs.elastic(run_dir, *SLOWLY, *upload), copy | {"NPROC": "2", "GRACE_SECONDS": "30"})
    runs.wait_until(lambda: runs.last_step(run_dir) >= 2, agent)
    agent.terminate()
    outcome = runs.outcome_of(agent, limit_seconds=60)
    assert outcome.code == PREEMPTED, outcome.stderr
    assert "the unfinished upload is left to the next start" in outcome.stderr
    (saved,) = runs.digests(run_dir)
    assert not list((tmp_path / "target").glob("step-*"))
    assert f"from step-{saved:08d}" in runs.train(run_dir, *SELDOM, *upload).stderr
    assert runs.digests(run_dir)[runs.STEPS] == runs.digests(reference)[runs.STEPS]
    assert (tmp_path / "target" / f"step-{runs.STEPS:08d}").is_dir()


MEASURED = ("--evaluation.every-kimg", str(runs.EVERY_STEP_KIMG), "--evaluation.metrics", "fd,memorisation")


def test_run_signalled_while_it_measures_saves_at_once_and_measures_when_it_resumes(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    halved = ("--distributed.strategy", "fsdp", "--train.precision", "bf16", "--distributed.gather-dtype", "bfloat16")
    command = runs.training(run_dir, *MEASURED, *halved, "--evaluation.num", "1000000", steps=2, ranks=2)
    job = runs.start(command)
    runs.wait_until(lambda: runs.last_step(run_dir) == 1, job)
    ranks = runs.workers_of(job.pid)
    os.kill(ranks[1], signal.SIGTERM)
    outcome = runs.outcome_of(job, limit_seconds=60)
    assert "told to stop at 0.1 kimg" in outcome.stderr
    assert list(runs.digests(run_dir)) == [1]
    runs.train(run_dir, *MEASURED, *halved, "--evaluation.num", "50", steps=2, ranks=2)
    measured = {each["step"]: each for each in runs.records(run_dir) if "evaluation/fd" in each}
    assert list(measured) == [1, 2]
    assert 0 < measured[2]["evaluation/fd"] != measured[1]["evaluation/fd"]
    again = runs.train(run_dir, *MEASURED, *halved, "--evaluation.num", "50", steps=2)
    assert "nothing to do" in again.stderr
    assert len([each for each in runs.records(run_dir) if "evaluation/fd" in each]) == 2


def test_run_signalled_after_its_last_step_is_finished(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = runs.start(runs.training(run_dir, *MEASURED, "--evaluation.num", "1000000", steps=1))
    runs.wait_until((run_dir / "checkpoints" / "step-00000001").exists, process)
    process.terminate()
    outcome = runs.outcome_of(process, limit_seconds=60)
    assert outcome.code == 0, outcome.stderr
    assert "told to stop before samples were measured" in outcome.stderr
