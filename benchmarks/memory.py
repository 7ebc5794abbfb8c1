"""What a rank's own memory grows by with every row of a data set, while it trains and while it evaluates.

Anonymous memory: what is mapped from files is the system's to give back.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.data import NETWORK, RUN, pack_of_noise

SHAPE = (1, 8, 8)
FEATURES = int(np.prod(SHAPE)) * 4  # bytes of a row of the bank, and of one that evaluation keeps
FEW, MANY, MANY_MEASURED = 10_000, 1_000_000, 50_000  # neighbours among rows take the square of their number
TRAINING = ("--train.total-kimg", "2.56", "--generator.channel-mult", "[1,2]", "--transport.scope", "subset")
EVALUATION = ("--evaluation.every-kimg", "2.56", "--evaluation.num", "1000", "--evaluation.features", "pixels")
METRICS = ("--evaluation.metrics", "fd,kid,pr,coverage,memorisation")

# What is freed goes back at once, so that the figures are of what is held and not of the allocator's habits.
HELD = {"MALLOC_MMAP_THRESHOLD_": "131072"}

# A run, and the most anonymous memory that it ever had, kB.
PEAK = """
import os, sys, threading
from gfgw_prod.commands.cli import main
from pathlib import Path
over, most = threading.Event(), 0
def look():
    global most
    while not over.wait(0.02):
        status = Path("/proc/self/status").read_text()
        most = max(most, int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))))
thread = threading.Thread(target=look)
thread.start()
code = main(["train", *sys.argv[1:]])
over.set()
thread.join()
assert code == 0
os.write(1, f"{most}\\n".encode())  # at once: ranks share the pipe
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="gfgw-memory-") as made:
        place = Path(made)
        packs = {rows: pack_of_noise(place / f"rows-{rows}", rows, SHAPE) for rows in (FEW, MANY_MEASURED, MANY)}
        for what, many, options in (
            ("training", MANY, ()),
            ("training and evaluation", MANY_MEASURED, (*EVALUATION, *METRICS)),
        ):
            for ranks in (1, 2):
                found = {rows: _peak(place, packs[rows], ranks, *options) for rows in (FEW, many)}
                more = 1e3 * (found[many] - found[FEW]) / (many - FEW)
                told = ", ".join(f"{kilobytes / 1e3:,.0f} MB at {rows:,} rows" for rows, kilobytes in found.items())
                print(f"{what}, {ranks} rank{'s' * (ranks > 1)}: {told}; {more:.0f} bytes with every row", flush=True)
    print(f"a row's features take {FEATURES} bytes; evaluation keeps them beside the bank's")


def _peak(place: Path, source: Path, ranks: int, *options: str) -> int:
    """The most that any rank had, kB."""
    run_dir = tempfile.mkdtemp(dir=place)
    data = ("--run.dir", run_dir, "--data.source", "packed", "--data.path", str(source))
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "--no-python")
    command = [sys.executable, *torchrun, sys.executable, "-c", PEAK, *data, *NETWORK, *RUN, *TRAINING, *options]
    told = subprocess.run(
        command, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env={**os.environ, **HELD}
    )
    return max(int(line) for line in told.stdout.split("\n") if line.isdigit())
