"""Kinds of faults: what they hit, which launches they fit, and how to tell that they had an effect."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from errno import ENOSPC
from pathlib import Path
from random import Random
from typing import Protocol

from gfgw_prod.process.exit_codes import PREEMPTED

from ..process import runs
from ..process.two_hosts import CANNOT
from .job import Job, Launch

FELT_SECONDS = 60  # limit for a fault to take effect


class Fault(Protocol):
    """A kind of fault."""

    name: str
    leaves: frozenset[int]  # exit codes of launchers that the fault may cause

    def fits(self, launch: Launch) -> bool:
        """Whether the fault applies to this launch."""

    def ends(self, launch: Launch) -> bool:
        """Whether the fault ends the whole job."""

    def cannot(self) -> str:
        """Why this machine cannot inject the fault; empty if it can."""

    def strike(self, job: Job, chance: Random) -> Callable[[], bool]:
        """Inject the fault. Returns a check, for later, that it had an effect."""


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for the condition.

    Raises:
        TimeoutError: with ``what``, after ``FELT_SECONDS``.
    """
    deadline = time.monotonic() + FELT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {FELT_SECONDS} s")
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def certainly() -> bool:
    """The check of a fault that always has an effect."""
    return True


@dataclass(frozen=True)
class Anywhere:
    """Base class: a fault that fits every launch and that the job survives."""

    name: str
    leaves: frozenset[int] = frozenset()

    def fits(self, launch: Launch) -> bool:
        return True

    def ends(self, launch: Launch) -> bool:
        return False

    def cannot(self) -> str:
        return ""


@dataclass(frozen=True)
class SignalRank(Anywhere):
    """A signal to one rank's process."""

    number: signal.Signals = signal.SIGKILL

    def strike(self, job: Job, chance: Random) -> Callable[[], bool]:
        until(job.ranks, "ranks")  # all may restart
        _, pid = chance.choice(sorted(job.ranks().items()))
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(pid, self.number)
        return lambda: gone(pid)  # every signal must lead to a new process


@dataclass(frozen=True)
class SoonAfterAKill(Anywhere):
    """SIGKILL to a rank, and another fault within a second: while the rank is replaced, or just after."""

    then: Fault = SignalRank("")

    def fits(self, launch: Launch) -> bool:
        return launch.world_size > 1 and self.then.fits(launch)

    def ends(self, launch: Launch) -> bool:
        return self.then.ends(launch)

    def strike(self, job: Job, chance: Random) -> Callable[[], bool]:
        killed = chance.choice(sorted(job.ranks().values()))
        os.kill(killed, signal.SIGKILL)
        time.sleep(chance.random())
        felt = self.then.strike(job, chance)
        return lambda: gone(killed) and felt()


@dataclass(frozen=True)
class TerminateRank(Anywhere):
    """SIGTERM to one rank: all ranks save, and the job exits."""

    leaves: frozenset[int] = frozenset({PREEMPTED})

    def fits(self, launch: Launch) -> bool:
        return launch.hosts == 1

    def ends(self, launch: Launch) -> bool:
        return True

    def strike(self, job: Job, chance: Random) -> Callable[[], bool]:
        left = len(job.left)
        _, pid = chance.choice(sorted(job.ranks().items()))
        os.kill(pid, signal.SIGTERM)
        until(lambda: job.agents[0].poll() is not None, "the end of the job")
        return lambda: job.left[left:] == [PREEMPTED]


@dataclass(frozen=True)
class TerminateJob(Anywhere):
    """SIGTERM to the launchers of all hosts, as a scheduler preempts a job."""

    leaves: frozenset[int] = frozenset({PREEMPTED})

    def ends(self, launch: Launch) -> bool:
        return True

    def strike(self, job: Job, chance: Random) -> Callable[[], bool]:
        left, hosts = len(job.left), job.launch.hosts
        job.stop()
        return lambda: job.left[left:] == hosts * [PREEMPTED]


@dataclass(frozen=True)
class KillAgent(Anywhere):
    """SIGKILL to the launcher of one host, perhaps that of the rendezvous. Its ranks die with it."""

    leaves: frozenset[int] = frozenset({-signal.SIGKILL})

    def ends(self, launch: Launch) -> bool:
        return launch.hosts == 1

    def strike(self, job: Job, chance: Random) -> Callable[[], bool]:
        left = len(job.left)
        agent = chance.choice(job.agents)
        ranks = runs.workers_of(agent.pid)
        agent.kill()
        agent.wait()
        return lambda: job.left[left:] == [-signal.SIGKILL] and all(map(gone, ranks.values()))


@dataclass(frozen=True)
class Inside(Anywhere):
    """A fault within a step of one rank, injected by ``inside/sitecustomize.py``."""

    kind: str = ""
    noticed: str = ": rank {rank} on "  # in the log of the job
    bits: tuple[int, ...] = (0,)
    wrong_number: bool = False
    needs_audit: bool = False  # nothing else would find it
    needs_replicas: bool = False

    def fits(self, launch: Launch) -> bool:
        if self.needs_replicas and (launch.strategy != "ddp" or launch.world_size == 1):
            return False
        return (launch.audit or not self.needs_audit) and (launch.evenly or not self.wrong_number)

    def strike(self, job: Job, chance: Random) -> Callable[[], bool]:
        rank = chance.choice(sorted(job.ranks()))
        before = job.said(self.noticed.format(rank=rank))
        waiting = job.faults / f"{self.kind}-{rank}"
        taken = job.faults / f"{waiting.name}.taken"
        taken.unlink(missing_ok=True)
        partial = job.faults / f".{waiting.name}"
        partial.write_text(str(chance.choice(self.bits)))
        partial.rename(waiting)
        try:
            until(taken.exists, f"rank {rank} in a step")
        finally:
            waiting.unlink(missing_ok=True)
        return lambda: job.said(self.noticed.format(rank=rank)) > before


@dataclass(frozen=True)
class DamageCheckpoint(Anywhere):
    """SIGKILL to every rank, and damage to the checkpoint that they would resume from."""

    def strike(self, job: Job, chance: Random) -> Callable[[], bool]:
        set_aside = len(list(job.root.glob("damaged-*")))
        ranks = job.ranks().values()
        for pid in ranks:
            os.kill(pid, signal.SIGKILL)
        until(lambda: all(map(gone, ranks)), "the death of ranks")  # from here on, nobody commits another one
        file = chance.choice(sorted(job.checkpoints()[-1].iterdir()))
        size = file.stat().st_size
        how = chance.choice(["flip", "cut", "delete"])
        if how == "delete":
            file.unlink()
        elif how == "cut":
            os.truncate(file, chance.randrange(size))
        else:
            with file.open("r+b") as damaged:
                damaged.seek(chance.randrange(size))
                byte = damaged.read(1)[0]
                damaged.seek(-1, os.SEEK_CUR)
                damaged.write(bytes([byte ^ 1 << chance.randrange(8)]))
        return lambda: len(list(job.root.glob("damaged-*"))) == set_aside + 1


@dataclass(frozen=True)
class FillDisk(Anywhere):
    """Fill the file system of the checkpoints, with bytes or with files, until a save fails."""

    def cannot(self) -> str:
        return "a small file system of its own needs root" if os.geteuid() else ""

    def strike(self, job: Job, chance: Random) -> Callable[[], bool]:
        failed = job.said("was not saved")
        ballast = job.root / "ballast"
        ballast.mkdir()
        number = itertools.count()
        write = _write_bytes if chance.random() < 0.5 else Path.touch

        def fills() -> bool:  # again: an old checkpoint may be removed, and leave room for one more
            _until_full(lambda: write(ballast / str(next(number))))
            return job.said("was not saved") > failed

        try:
            until(fills, "a save that fails")
        finally:
            for file in ballast.iterdir():
                file.unlink()
            ballast.rmdir()
        newest = job.newest_step()
        return lambda: job.newest_step() > newest


def _write_bytes(file: Path) -> None:
    file.write_bytes(bytes(1 << 20))


def _until_full(write: Callable[[], None]) -> None:
    try:
        while True:
            write()
    except OSError as error:
        if error.errno != ENOSPC:
            raise


@dataclass(frozen=True)
class CutLink(Anywhere):
    """Unplug the cable between two hosts, for less or for more than the ranks wait for each other."""

    seconds: tuple[int, ...] = (3, 13)

    def fits(self, launch: Launch) -> bool:
        return launch.hosts == 2

    def cannot(self) -> str:
        return CANNOT

    def strike(self, job: Job, chance: Random) -> Callable[[], bool]:
        assert job.net is not None
        job.net.cable("down")
        time.sleep(chance.choice(self.seconds))
        job.net.cable("up")
        return certainly


KINDS: tuple[Fault, ...] = (
    SignalRank("kill a rank", number=signal.SIGKILL),
    SoonAfterAKill("kill a rank, and one soon after"),
    SoonAfterAKill("kill a rank, and stop one soon after", then=SignalRank("", number=signal.SIGSTOP)),
    SoonAfterAKill("kill a rank, and terminate the job soon after", frozenset({PREEMPTED}), then=TerminateJob("")),
    SignalRank("segmentation fault of a rank", number=signal.SIGSEGV),
    SignalRank("stop a rank (SIGSTOP)", number=signal.SIGSTOP),
    KillAgent("kill a launcher"),
    TerminateJob("terminate the job"),
    TerminateRank("terminate a rank"),
    Inside("exception in a step", kind="exception", noticed="chaos: an exception in a step"),
    Inside("NaN in a gradient", kind="nan", wrong_number=True),
    Inside(
        "flipped bit in an activation",
        kind="flip",
        bits=(*range(12, 30),),
        wrong_number=True,
        needs_audit=True,
    ),
    Inside("flipped bit in a gradient", kind="gradient", bits=(*range(12, 30),), wrong_number=True, needs_audit=True),
    Inside(
        "flipped bit in a weight",
        kind="weight",
        bits=(*range(12, 30),),
        noticed="duals that must be the same",
        needs_replicas=True,
    ),
    DamageCheckpoint("damaged newest checkpoint, and a kill"),
    FillDisk("full disk while saving"),
    CutLink("cut link between hosts"),
)
