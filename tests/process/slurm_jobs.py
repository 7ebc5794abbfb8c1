"""Jobs of launch/slurm.sbatch: submitted, frozen at the moment of interest, and followed to their end."""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from . import runs
from .slurm import Cluster

SCRIPT = runs.ROOT / "launch" / "slurm.sbatch"
STEPS = 18
UNHURRIED = ("--telemetry.samples-every-kimg", str(runs.SMALL_BATCH / 1000), "--telemetry.sample-grid", "32")
ARGUMENTS = (*runs.TINY, *runs.SMALL, *UNHURRIED, "--train.total-kimg", str(STEPS * runs.SMALL_BATCH / 1000))


@dataclass(frozen=True)
class Ended:
    """A job that has ended, as SLURM reports it, and its output over all its starts."""

    run_dir: Path
    state: str
    exit_code: str
    restarts: str
    comment: str
    said: str


class Job:
    """A run of the smallest network, submitted to a cluster."""

    def __init__(self, cluster: Cluster, *sbatch: str, options: tuple[str, ...] = (), **environment: str):
        self.cluster = cluster
        self.run_dir = cluster.directory / "run"
        self.log = cluster.directory / "job.log"
        arguments = [*ARGUMENTS, "--run.dir", str(self.run_dir), *options]
        submit = ["sbatch", "--parsable", f"--output={self.log}", *sbatch, str(SCRIPT), *arguments]
        self.id = cluster.ask(*submit, extra={"NPROC": "1", **environment})
        assert self.id.isdigit(), submit

    @property
    def said(self) -> str:
        """The output of the job, over all its starts."""
        return self.log.read_text() if self.log.exists() else ""

    def __getitem__(self, field: str) -> str:
        """A field of SLURM's record of the job, such as ``JobState``."""
        found = re.search(
            rf"\b{field}=(.*?)(?= +[A-Z]\w*=|$)", self.cluster.ask("scontrol", "show", "job", "-o", self.id)
        )
        return found.group(1) if found else ""

    def ranks(self, *nodes: str) -> list[int]:
        """Process ids of the running ranks, on some nodes or all."""
        found = []
        for pid in (pid for node in nodes or self.cluster.nodes for pid in self.cluster.processes(node)):
            try:
                variables = (Path("/proc") / str(pid) / "environ").read_bytes().split(b"\0")
            except OSError:  # it has ended meanwhile
                continue
            found += [pid] if any(each.startswith(b"RANK=") for each in variables) else []
        return found

    def freeze_after_checkpoint(self) -> list[int]:
        """Stop the ranks in the middle of a step after the first checkpoint. Returns them."""
        self.cluster.wait_for(lambda: list((self.run_dir / "checkpoints").glob("step-*")), pause_seconds=0.02)
        return self.freeze_after(0)

    def freeze_after(self, step: int, *nodes: str) -> list[int]:
        """Stop ranks in the middle of a step after the given one, as if it took long, and their launchers."""
        self.cluster.wait_for(lambda: runs.last_step(self.run_dir) > step, pause_seconds=0.02)
        ranks = self.ranks(*nodes)
        launchers = {runs.parent_of(rank) for rank in ranks}  # they would kill a rank that is stopped
        for process in (*launchers, *ranks):
            os.kill(process, signal.SIGSTOP)
        assert runs.last_step(self.run_dir) < STEPS, "all steps are made"
        return [*launchers, *ranks]

    def thaw(self, processes: list[int], *, once_signalled: bool = True) -> None:
        """Resume the processes, as soon as a stop signal is pending for each of them."""
        if once_signalled:
            self.cluster.wait_for(lambda: all(map(is_signalled, processes)))
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)

    def end(self) -> Ended:
        """Wait until SLURM is done with the job."""
        self.cluster.wait_for(lambda: self["JobState"] not in {"PENDING", "RUNNING", "COMPLETING", "REQUEUED"})
        fields = ("JobState", "ExitCode", "Restarts", "Comment")
        self.cluster.wait_for(lambda: not self.cluster.ask("squeue", "--noheader"))
        return Ended(self.run_dir, *map(self.__getitem__, fields), self.said)


def is_signalled(rank: int) -> bool:
    """Whether SIGUSR1 or SIGTERM is pending for a process, or it has ended: SLURM sends SIGCONT with its SIGTERM."""
    try:
        status = (Path("/proc") / str(rank) / "status").read_text()
    except OSError:
        return True
    (pending,) = re.findall(r"^ShdPnd:\s*(\w+)", status, re.MULTILINE)
    return bool(int(pending, 16) & (1 << signal.SIGUSR1 - 1 | 1 << signal.SIGTERM - 1))
