"""A process that is done, or cannot go on, exits with its code whatever its threads are doing."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from gfgw_prod.process.exit_codes import PREEMPTED

from . import copies, runs

# A state of some megabytes and a run of one step.
LARGE = (
    *("--generator.model-channels", "96", "--generator.num-blocks", "2", "--generator.channel-mult", "[1,2]"),
    *("--train.batch-size", "32", "--train.cell-size", "32", "--train.total-kimg", "0.032"),
    *("--telemetry.sample-grid", "1"),
)

# A thread that reads torch's store all the time, as a launcher's own does every few seconds.
BUSY = """
import runpy, threading
from torch.distributed import TCPStore

store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
store.set("asked", "yes")


def ask():
    while True:
        store.get("asked")


threading.Thread(target=ask, daemon=True).start()
"""
LAUNCH = BUSY + 'runpy.run_module("gfgw_prod.launcher", run_name="__main__", alter_sys=True)'


def test_finished_run_with_a_large_state_can_be_started_again(tmp_path: Path) -> None:
    for _ in range(3):
        runs.train(tmp_path / "run", *LARGE)


def signals_of(pid: int) -> list[str]:
    """The signals that a process blocks, ignores and catches; nothing where there is no /proc."""
    status = Path(f"/proc/{pid}/status")
    return [line for line in status.read_text().splitlines() if line.startswith("Sig")] if status.exists() else []


def test_interrupt_during_a_save_lets_the_save_end(tmp_path: Path) -> None:
    many = ("--train.total-kimg", "3.2", "--checkpoint.every-kimg", "0.032", "--checkpoint.keep", "100")
    process = runs.start(runs.training(tmp_path / "run", *LARGE, *many))
    runs.wait_until((tmp_path / "run" / "checkpoints" / "step-00000002").exists, process)
    handled = signals_of(process.pid)
    process.send_signal(signal.SIGINT)
    outcome = runs.outcome_of(process)
    assert outcome.code == 130, (outcome.stderr, handled)
    assert "gfgw: interrupted" in outcome.stderr.splitlines()[-1]
    saved = sorted(runs.digests(tmp_path / "run"))
    assert saved == list(range(1, len(saved) + 1))


def test_interrupt_that_a_library_swallows_ends_the_run_after_the_step(tmp_path: Path) -> None:
    loses = ("with __import__('contextlib').suppress(BaseException):", "    __import__('time').sleep(1)")
    copy = copies.in_step(tmp_path, *loses)
    process = runs.start(runs.training(tmp_path / "run", steps=1000), copy)
    runs.wait_until(lambda: runs.last_step(tmp_path / "run") >= 1, process)
    process.send_signal(signal.SIGINT)
    outcome = runs.outcome_of(process)
    assert outcome.code == 130, outcome.stderr
    assert "gfgw: interrupted" in outcome.stderr.splitlines()[-1]


def test_preempted_run_exits_with_75_though_its_data_are_slow(tmp_path: Path) -> None:
    slow = "        __import__('time').sleep(0.3)\n        torch.ones(1 << 22).sin()\n"  # like slow decoding in torch
    copy = copies.changed(tmp_path, copies.ROWS_ARE_READ, before=slow)
    for number in range(3):
        run_dir = tmp_path / str(number)
        process = runs.start(runs.training(run_dir, steps=1000), copy)
        runs.wait_until(lambda run_dir=run_dir: runs.last_step(run_dir) >= 1, process)
        process.terminate()
        outcome = runs.outcome_of(process)
        assert outcome.code == PREEMPTED, outcome.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is not there")
def test_run_with_an_unwritable_stdout_finishes(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        process = runs.start(runs.elastic(tmp_path / "run"), output=full)
        assert process.wait(runs.LIMIT_SECONDS) == 0
    assert runs.STEPS in runs.digests(tmp_path / "run")


def test_launcher_exits_with_its_code_though_a_thread_is_in_torch(tmp_path: Path) -> None:
    if sys.version_info < (3, 14):  # the bug that this works around
        plain = [sys.executable, "-c", BUSY + f"raise SystemExit({PREEMPTED})"]
        assert any(runs.execute(plain).code == -signal.SIGABRT for _ in range(5))
    up = tmp_path / "up"
    rank = ("--no-python", "sh", "-c", f"touch {up}; exec sleep 600")
    agent = runs.start([sys.executable, "-c", LAUNCH, *runs.MEETS_ITSELF, *rank])
    runs.wait_until(up.exists, agent)
    agent.terminate()
    assert runs.outcome_of(agent, limit_seconds=60) == runs.Outcome(PREEMPTED, "", "")
