"""Random kills, one after the other, in one run of each number of ranks: time to the next new step, and the weights.

``KILLS`` is how many each run gets (50). A run that ends with other weights than one undisturbed process is a failure.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu.check import digest_of
from benchmarks.recovery import LIMIT_SECONDS, ROOT, STEP_KIMG, ranks_of, records, wait_for_record
from gfgw_prod.process.exit_codes import PREEMPTED

KILLS = int(os.environ.get("KILLS", "50"))
RANKS = (2, 4, 8)
LONG_SECONDS = 10
SETTINGS = ["--config", "configs/digits.yaml", "--telemetry.progress", "off", "--evaluation.every-kimg", "0"]
SETTINGS += ["--telemetry.samples-every-kimg", "1000000", "--telemetry.log-every-kimg", str(STEP_KIMG)]
for schedule in (
    "consistency.kimg",
    "optimizer.decay-kimg",
    "transport.epsilon-kimg",
    "transport.structure-weight-kimg",
):
    SETTINGS += [f"--{schedule}", "120"]  # the same for runs of any length


def campaign(run_dir: Path, ranks: int, chance: random.Random) -> tuple[list[float], int, int]:
    """Kill a random rank again and again.

    Returns:
        Seconds from each kill to the next new step, how often other ranks ended too, and the last step.
    """
    command = ["bash", "launch/elastic.sh", *SETTINGS, "--run.dir", str(run_dir), "--train.total-kimg", "1000000"]
    surroundings = {"NPROC": str(ranks), "PYTHON": sys.executable, "MAX_RESTARTS": "100000"}
    took, restarts = [], 0
    with (
        (run_dir.parent / f"{run_dir.name}.log").open("w") as log,
        subprocess.Popen(command, cwd=ROOT, env={**os.environ, **surroundings}, stdout=log, stderr=log) as agent,
    ):
        try:
            for _ in range(KILLS):
                at = records(run_dir)[-1]["step"] if took else 0
                wait_for_record(run_dir, 0.0, at + 1, agent)
                time.sleep(chance.random() / 4)
                before, struck = ranks_of(agent.pid), chance.randrange(ranks)
                killed, done = time.time(), records(run_dir)[-1]["step"]
                os.kill(before.pop(struck), signal.SIGKILL)
                took.append(wait_for_record(run_dir, killed, done, agent)["time"] - killed)
                restarts += not before.items() <= ranks_of(agent.pid).items()
        finally:
            agent.terminate()
            code = agent.wait(LIMIT_SECONDS)
    if code != PREEMPTED:
        raise RuntimeError(f"the launcher ended with exit code {code}")
    return took, restarts, int(records(run_dir)[-1]["step"])


def main() -> None:
    chance = random.Random(0)
    late_ones = f"> {LONG_SECONDS} s"
    print(f"{'ranks':>5}{'kills':>7}{'median s':>10}{'95 %':>8}{'most':>8}{late_ones:>8}{'restarts of all':>17}")
    with tempfile.TemporaryDirectory() as scratch:
        for ranks in RANKS:
            run_dir, alone = Path(scratch) / f"{ranks}", Path(scratch) / f"{ranks}-alone"
            took, restarts, step = campaign(run_dir, ranks, chance)
            late = sorted(took)[round(0.95 * (len(took) - 1))]
            long = sum(each > LONG_SECONDS for each in took)
            print(
                f"{ranks:>5}{len(took):>7}{statistics.median(took):>10.2f}{late:>8.2f}{max(took):>8.2f}{long:>8}"
                f"{restarts:>17}",
                flush=True,
            )
            length = ["--run.dir", str(alone), "--train.total-kimg", str(step * 256 / 1000)]
            subprocess.run(
                [sys.executable, "-m", "gfgw_prod", "train", *SETTINGS, *length],
                cwd=ROOT,
                check=True,
                stderr=subprocess.DEVNULL,
            )
            same = digest_of(alone) == digest_of(run_dir)
            print(
                f"      weights after {step} steps {'equal' if same else 'DIFFER from'} those of one process",
                flush=True,
            )
            if not same:
                raise SystemExit(1)
