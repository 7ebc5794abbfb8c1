"""A stop signal at any moment of the start-up: exit code 75; there is nothing to save yet, or it has been saved."""

from __future__ import annotations

import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gfgw_prod.process.exit_codes import PREEMPTED

from . import runs

# Python then tells on stderr of each module, when it has been imported.
TOLD = {"PYTHONPROFILEIMPORTTIME": "1", "NPROC": "2"}
FIRST = "gfgw_prod.process.leaving"  # when this module comes, what answers signals is in place
SEED = 7


def struck(command: list[str], number: signal.Signals, after_seconds: float) -> None:
    """Starts a process, strikes it, and looks at its end."""
    process = runs.start(command, TOLD)
    time.sleep(after_seconds)
    assert process.poll() is None, runs.outcome_of(process)
    process.send_signal(number)
    outcome = runs.outcome_of(process)
    said = [line for line in outcome.stderr.splitlines() if not line.startswith("import time:")]
    case = f"{number.name} after {after_seconds:.3f} s: exit code {outcome.code}\n" + "\n".join(said)
    if outcome.code == -number:  # the interpreter itself was starting: nothing of ours can answer then
        assert FIRST not in outcome.stderr, case
    else:
        assert outcome.code == PREEMPTED, case
    assert "Traceback" not in outcome.stderr, case


def strikes(count: int, most_seconds: float, seed: int) -> list[tuple[signal.Signals, float]]:
    """Signals and moments, evenly drawn, the first of them early."""
    numbers = random.Random(seed)
    moments = [0.0, 0.02, 0.05, *(numbers.uniform(0, most_seconds) for _ in range(count - 3))]
    return [(numbers.choice((signal.SIGTERM, signal.SIGUSR1)), moment) for moment in moments]


def test_run_alone_leaves_with_75(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        for end in [
            pool.submit(struck, runs.training(tmp_path / str(number), steps=10_000), what, when)
            for number, (what, when) in enumerate(strikes(24, 2.0, SEED))
        ]:
            end.result()


def test_launcher_and_its_ranks_leave_with_75(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        for end in [
            pool.submit(struck, runs.elastic(tmp_path / str(number), steps=10_000), what, when)
            for number, (what, when) in enumerate(strikes(12, 6.0, SEED + 1))
        ]:
            end.result()
