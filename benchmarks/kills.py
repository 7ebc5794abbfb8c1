"""Random kills, one after the other, in one run of each number of ranks: time to the next new step, and the weights.

``KILLS`` is how many each run gets (50). A run that ends with other weights than one undisturbed process is a failure.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.recovery import LIMIT_SECONDS, ROOT, STEP_KIMG
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


class Steps:
    """The steps of a run as its records come."""

    def __init__(self, run_dir: Path):
        self._path, self._read = run_dir / "stats.jsonl", 0
        self.newest, self.at = 0, 0.0

    def look(self) -> int:
        """The newest step so far."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._read)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._read += len(line)
                    record = json.loads(line)
                    if "loss/total" in record and record["step"] > self.newest:
                        self.newest, self.at = record["step"], record["time"]
        return self.newest

    def wait_for(self, step: int, agent: subprocess.Popen[bytes]) -> None:
        """Wait until this step has been made."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while self.look() < step:
            if time.monotonic() > deadline or agent.poll() is not None:
                raise RuntimeError(f"no step {step}; the launcher's exit code: {agent.poll()}")
            time.sleep(0.01)


def ranks_of(agent: int) -> dict[int, int]:
    """Process ids of the ranks that run, by rank."""
    found = {}
    for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        try:
            variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        found |= {int(each[5:]): int(child) for each in variables if each.startswith(b"RANK=")}
    return found


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
            steps = Steps(run_dir)
            for _ in range(KILLS):
                steps.wait_for(steps.look() + 2, agent)
                time.sleep(chance.random() / 4)
                before = ranks_of(agent.pid)
                struck = chance.randrange(ranks)
                killed, done = time.time(), steps.look()
                os.kill(before[struck], signal.SIGKILL)
                steps.wait_for(done + 1, agent)
                if steps.at < killed:  # the step was being recorded
                    steps.wait_for(done + 2, agent)
                took.append(steps.at - killed)
                restarts += any(
                    ranks_of(agent.pid).get(rank) != before[rank] for rank in range(ranks) if rank != struck
                )
        finally:
            agent.terminate()
            code = agent.wait(LIMIT_SECONDS)
    if code != PREEMPTED:
        raise RuntimeError(f"the launcher ended with exit code {code}")
    return took, restarts, steps.look()


def digest_of(run_dir: Path) -> tuple[int, str]:
    """Step and digest of the newest checkpoint."""
    command = [sys.executable, "-m", "gfgw_prod", "inspect", str(run_dir), "--json"]
    found = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)["checkpoints"]
    newest = max(found, key=lambda each: int(each["step"]))
    return newest["step"], newest["weights_sha256"]


def main() -> None:
    chance = random.Random(0)
    late_ones = f"> {LONG_SECONDS} s"
    print(f"{'ranks':>5}{'kills':>7}{'median s':>10}{'95 %':>8}{'most':>8}{late_ones:>8}{'restarts of all':>17}")
    with tempfile.TemporaryDirectory() as scratch:
        for ranks in RANKS:
            run_dir, alone = Path(scratch) / f"{ranks}", Path(scratch) / f"{ranks}-alone"
            took, restarts, _ = campaign(run_dir, ranks, chance)
            late = sorted(took)[round(0.95 * (len(took) - 1))]
            long = sum(each > LONG_SECONDS for each in took)
            print(
                f"{ranks:>5}{len(took):>7}{statistics.median(took):>10.2f}{late:>8.2f}{max(took):>8.2f}{long:>8}"
                f"{restarts:>17}",
                flush=True,
            )
            step, digest = digest_of(run_dir)
            length = ["--run.dir", str(alone), "--train.total-kimg", str(step * 256 / 1000)]
            subprocess.run([sys.executable, "-m", "gfgw_prod", "train", *SETTINGS, *length], cwd=ROOT, check=True)
            same = digest_of(alone) == (step, digest)
            print(
                f"      weights after {step} steps {'equal' if same else 'DIFFER from'} those of one process",
                flush=True,
            )
            if not same:
                raise SystemExit(1)
