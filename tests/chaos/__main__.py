"""`python -m tests.chaos [--seed N] [--faults N]`; exit code 1 unless all faults are survived and the weights equal."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from .campaign import Campaign, Result, small_disk
from .faults import KINDS, Fault
from .job import Job
from .report import show
from .schedule import schedule


def chaos(directory: Path, seed: int, count: int, kinds: Sequence[Fault], log: Callable[[str], None]) -> Result:
    """Inject ``count`` faults into a run in a new directory, and compare it with an undisturbed one."""
    faults = schedule(seed, count, kinds)
    with small_disk(directory / "disk") as root, Job(directory, root, faults[0].launch) as job:
        campaign = Campaign(job, seed, log)
        campaign.run(faults)
        campaign.conclude(directory / "undisturbed")
    return campaign.result


def main() -> int:
    """Run the command. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the schedule (0)")
    parser.add_argument("--faults", type=int, default=40, help="how many (40)")
    parser.add_argument("--only", action="append", metavar="WORDS", help="only kinds with these words in their name")
    chosen = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    wanted = [kind for kind in KINDS if not chosen.only or any(words in kind.name for words in chosen.only)]
    not_run = {kind.name: reason for kind in wanted if (reason := kind.cannot())}
    kinds = [kind for kind in wanted if kind.name not in not_run]
    if chosen.faults < 1 or not kinds:
        parser.error("nothing to do")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # clean up on the way out
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    result = chaos(
        directory, chosen.seed, chosen.faults, kinds, lambda line: console.print(line, highlight=False, soft_wrap=True)
    )
    show(result, not_run, console)
    if result.good:
        shutil.rmtree(directory)
        return 0
    console.print(f"log of the job: {directory}/job.log", highlight=False, soft_wrap=True)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
