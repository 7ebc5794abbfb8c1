"""A job and its scheduler: start the launchers of a run on one or two hosts, and restart those that exit."""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ..process import runs
from ..process.two_hosts import TwoHosts

INSIDE = Path(__file__).parent / "inside"
BATCH = runs.SMALL_BATCH
CELLS = 4  # of a batch
EVERY = 5  # steps between checkpoints
SETTINGS = (
    *runs.SMALL,
    *("--checkpoint.every-kimg", str(EVERY * BATCH / 1000), "--checkpoint.max-failures", "1000"),
    *("--telemetry.samples-every-kimg", "1000000", "--resilience.in-place", "true"),
)
ENDLESS_KIMG = 1_000_000
PEERS_SECONDS = 10  # longest wait for other ranks
GRACE_SECONDS = 20
SURROUNDINGS = {"MAX_RESTARTS": "100000", "GRACE_SECONDS": str(GRACE_SECONDS)}


@dataclass(frozen=True)
class Launch:
    """How a job is started. Every launch trains the same weights."""

    hosts: int = 1
    ranks: int = 2
    strategy: str = "ddp"
    audit: bool = False

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.hosts if self.hosts > 1 else self.ranks

    @property
    def evenly(self) -> bool:
        """Whether no rank runs weightless cells, whose numbers do not matter."""
        return CELLS % self.world_size == 0

    def options(self) -> list[str]:
        """Settings that do not change the trajectory."""
        chosen = ["--distributed.strategy", self.strategy, "--distributed.timeout-seconds", str(PEERS_SECONDS)]
        if self.audit:
            chosen += ["--resilience.audit-every-steps", "1"]
        return [*chosen, "--resilience.hang-seconds", str(PEERS_SECONDS)]


class Job:
    """An endless run. Leaving the context kills it.

    Args:
        root: directory of its checkpoints.
        first: its first launch.
    """

    def __init__(self, directory: Path, root: Path, first: Launch):
        self.run_dir, self.root, self.launch = directory / "run", root, first
        self.faults = directory / "faults"  # where ranks look for faults
        self.log = directory / "job.log"
        self.next = first  # what the scheduler starts once all launchers have exited
        self.agents: list[subprocess.Popen[str]] = []
        self.left: list[int] = []  # exit codes of restarted agents
        self.net: TwoHosts | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Job:
        self.faults.mkdir(parents=True)
        self._output = self._stack.enter_context(self.log.open("a", encoding="utf-8"))
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._stack.close()

    def start(self) -> None:
        """Start the launchers of the next launch."""
        self.launch = self.next
        if self.launch.hosts == 2 and self.net is None:
            self.net = self._stack.enter_context(TwoHosts())
        self.agents = [self._agent(host) for host in range(self.launch.hosts)]

    def tend(self) -> bool:
        """Restart the launchers that have exited. Returns whether it was the whole job."""
        if not self.agents:
            self.start()
            return True
        codes = [agent.poll() for agent in self.agents]
        self.left += [code for code in codes if code is not None]
        if None not in codes:
            self.start()
            return True
        for host, code in enumerate(codes):
            if code is not None:
                self.agents[host] = self._agent(host)
        return False

    def stop(self, limit_seconds: float = 60) -> None:
        """Send SIGTERM to all launchers, and wait for them."""
        for agent in self.agents:
            agent.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + limit_seconds
        for agent in self.agents:
            agent.wait(max(deadline - time.monotonic(), 0.1))

    def kill(self) -> None:
        """Kill the launchers; ranks die with them."""
        for agent in self.agents:
            agent.kill()
            agent.wait()

    def ranks(self) -> dict[int, int]:
        """Process ids of the living ranks, by rank."""
        return {rank: pid for agent in self.agents for rank, pid in runs.workers_of(agent.pid).items()}

    def said(self, words: str) -> int:
        """How often these words stand in the log."""
        return self.log.read_text(encoding="utf-8", errors="replace").count(words)

    def checkpoints(self) -> list[Path]:
        """Checkpoint directories, oldest first."""
        return sorted(self.root.glob("step-*"))

    def newest_step(self) -> int:
        """Step of the newest checkpoint; 0 before the first."""
        return max((int(path.name[5:13]) for path in self.checkpoints()), default=0)

    def _agent(self, host: int) -> subprocess.Popen[str]:
        where = ("--checkpoint.root", str(self.root), "--train.total-kimg", str(ENDLESS_KIMG))
        command = runs.elastic(self.run_dir, *SETTINGS, *self.launch.options(), *where)
        extra = {**SURROUNDINGS, "PYTHONPATH": str(INSIDE), "CHAOS_FAULTS": str(self.faults)}
        if self.launch.hosts == 2:
            assert self.net is not None
            return self.net.start(host, command, extra, output=self._output)
        return runs.start(command, {**extra, "NPROC": str(self.launch.ranks)}, output=self._output)


def undisturbed(run_dir: Path, steps: int) -> None:
    """Train that many steps in one process, without faults."""
    runs.train(run_dir, *SETTINGS, "--train.total-kimg", str(steps * BATCH / 1000))
