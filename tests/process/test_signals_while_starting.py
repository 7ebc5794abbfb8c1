"""A stop signal at any moment of the start: exit code 75, with nothing to save yet or everything saved."""

from __future__ import annotations

import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gfgw_prod.process.exit_codes import PREEMPTED

from . import runs

# Python then logs each module on stderr, once it is imported.
LOG_IMPORTS = {"PYTHONPROFILEIMPORTTIME": "1", "NPROC": "2"}
FIRST = "gfgw_prod.process.leaving"  # when this module is imported, the signals are set up
SEED = 7


def check_signalled(command: list[str], number: signal.Signals, after_seconds: float) -> None:
    """Start a process, signal it, and check its end."""
    process = runs.start(command, LOG_IMPORTS, anew=True)
    time.sleep(after_seconds)
    assert process.poll() is None, runs.outcome_of(process)
    process.send_signal(number)
    outcome = runs.outcome_of(process)
    lines = [line for line in outcome.stderr.splitlines() if not line.startswith("import time:")]
    case = f"{number.name} after {after_seconds:.3f} s: exit code {outcome.code}\n" + "\n".join(lines)
    if outcome.code == -number:  # the interpreter itself was starting, and none of our code ran
        assert FIRST not in outcome.stderr, case
    else:
        assert outcome.code == PREEMPTED, case
    assert "Traceback" not in outcome.stderr, case


def moments_of(count: int, most_seconds: float, seed: int) -> list[tuple[signal.Signals, float]]:
    """Random signals and moments, the first three of them early."""
    numbers = random.Random(seed)
    moments = [0.0, 0.02, 0.05, *(numbers.uniform(0, most_seconds) for _ in range(count - 3))]
    return [(numbers.choice((signal.SIGTERM, signal.SIGUSR1)), moment) for moment in moments]


def test_single_process_exits_with_75(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        for end in [
            pool.submit(check_signalled, runs.training(tmp_path / str(number), steps=10_000), what, when)
            for number, (what, when) in enumerate(moments_of(12, 2.0, SEED))
        ]:
            end.result()


def test_launcher_and_its_ranks_exit_with_75(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        for end in [
            pool.submit(check_signalled, runs.elastic(tmp_path / str(number), steps=10_000), what, when)
            for number, (what, when) in enumerate(moments_of(8, 6.0, SEED + 1))
        ]:
            end.result()
