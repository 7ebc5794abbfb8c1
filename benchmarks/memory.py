"""Growth of a rank's memory per row of the data set, in training and in evaluation.

Anonymous memory only: the system can reclaim memory mapped from files.
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
FEATURES = int(np.prod(SHAPE)) * 4  # bytes of a bank row, and of a row that evaluation keeps
FEW, MANY, MANY_MEASURED = 10_000, 1_000_000, 50_000  # neighbour search is quadratic
TRAINING = ("--train.total-kimg", "2.56", "--generator.channel-mult", "[1,2]", "--transport.scope", "subset")
EVALUATION = ("--evaluation.every-kimg", "2.56", "--evaluation.num", "1000", "--evaluation.features", "pixels")
METRICS = ("--evaluation.metrics", "fd,kid,pr,coverage,memorisation")

# Return freed memory at once, so that figures do not include memory that the allocator retains.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "131072"}

# Run training and print its peak of anonymous memory, kB.
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
        directory = Path(made)
        packs = {rows: pack_of_noise(directory / f"rows-{rows}", rows, SHAPE) for rows in (FEW, MANY_MEASURED, MANY)}
        for what, many, options in (
            ("training", MANY, ()),
            ("training and evaluation", MANY_MEASURED, (*EVALUATION, *METRICS)),
        ):
            for ranks in (1, 2):
                found = {rows: _peak(directory, packs[rows], ranks, *options) for rows in (FEW, many)}
                more = 1e3 * (found[many] - found[FEW]) / (many - FEW)
                peaks = ", ".join(f"{kilobytes / 1e3:,.0f} MB at {rows:,} rows" for rows, kilobytes in found.items())
                print(f"{what}, {ranks} rank{'s' * (ranks > 1)}: {peaks}; {more:.0f} bytes per row", flush=True)
    print(f"features take {FEATURES} bytes per row; evaluation keeps its own beside the bank's")


def _peak(directory: Path, source: Path, ranks: int, *options: str) -> int:
    """Peak over all ranks, kB."""
    run_dir = tempfile.mkdtemp(dir=directory)
    data = ("--run.dir", run_dir, "--data.source", "packed", "--data.path", str(source))
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "--no-python")
    command = [sys.executable, *torchrun, sys.executable, "-c", PEAK, *data, *NETWORK, *RUN, *TRAINING, *options]
    finished = subprocess.run(
        command, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env={**os.environ, **MALLOC}
    )
    return max(int(line) for line in finished.stdout.split("\n") if line.isdigit())
