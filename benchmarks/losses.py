"""Time from the loss of a rank to the next new optimisation step, in place, by the way in which it is lost."""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks import recovery

REPEATS = int(os.environ.get("REPEATS", "5"))


@dataclass(frozen=True)
class Case:
    """A way to lose a rank."""

    options: tuple[str, ...] = ()
    rank: int = 1
    fault: signal.Signals = signal.SIGKILL


CASES = {
    "killed": Case(),
    "rank 0 killed": Case(rank=0),
    "stopped (SIGSTOP)": Case(fault=signal.SIGSTOP),
    "fsdp, killed": Case(("--distributed.strategy", "fsdp")),
    "HSDP of one, killed": Case(("--distributed.strategy", "fsdp", "--distributed.shard-ranks", "1")),
    "compiled, killed": Case(("--train.compile", "true")),
}


def main() -> None:
    chosen = [name for name in CASES if os.environ.get("CASE", "") in name]
    found: dict[str, list[float]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory() as scratch:
        for repeat in range(REPEATS):
            lost = 1 + repeat % (recovery.CHECKPOINT_STEPS - 2)
            for number, name in enumerate(chosen):
                case, run_dir = CASES[name], Path(scratch) / f"{repeat}-{number}"
                _, parts = recovery.measure(run_dir, lost, True, *case.options, rank=case.rank, fault=case.fault)
                found[name].append(sum(parts.values()))
                print(f"{name:<22}{found[name][-1]:>7.2f} s", flush=True)
    print(f"{f'{REPEATS} each, seconds':<22}{'median':>8}{'least':>8}{'most':>8}")
    for name, seconds in found.items():
        print(f"{name:<22}{statistics.median(seconds):>8.2f}{min(seconds):>8.2f}{max(seconds):>8.2f}")
