"""Inject one fault after the other into a run, and measure what each of them costs."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from gfgw_prod.process.exit_codes import PREEMPTED

from ..process import runs
from .job import BATCH, EVERY, Job, undisturbed
from .progress import Progress
from .schedule import Planned

LIMIT_SECONDS = 240  # for a job to make steps again after a fault
MORE_STEPS = 2  # after a fault: failing ranks may still finish one
GIVE_UP_AFTER = 3  # faults in a row that the job did not survive


@dataclass(frozen=True)
class Struck:
    """What a fault cost."""

    kind: str
    problem: str  # empty if the job survived
    images: int  # computed again
    seconds: float  # lost


@dataclass
class Result:
    """Outcome of a run under faults."""

    struck: list[Struck] = field(default_factory=list)
    steps: int = 0
    wall_seconds: float = 0.0
    useful_seconds: float = 0.0
    problem: str = ""  # at the end of the run
    same_weights: bool = False
    same_losses: bool = False

    @property
    def good(self) -> bool:
        """Whether the run survived all faults and equals the undisturbed one."""
        survived = not any(each.problem for each in self.struck)
        return survived and not self.problem and self.same_weights and self.same_losses


class Campaign:
    """Injects faults into one run.

    Args:
        log: takes one line for each fault.
    """

    def __init__(self, job: Job, seed: int, log: Callable[[str], None]):
        self.job, self.log = job, log
        self.chance = Random(seed)
        self.progress = Progress(job.run_dir)
        self.result = Result()

    def run(self, faults: Sequence[Planned]) -> None:
        """Inject all faults, then stop the job."""
        started = time.monotonic()
        failures = 0
        for number, planned in enumerate(faults):
            following = faults[min(number + 1, len(faults) - 1)]
            struck = self._strike(planned, following)
            self.result.struck.append(struck)
            self.log(
                f"{number + 1:3d}/{len(faults)} {time.monotonic() - started:5.0f} s  step {self.progress.step:5d}  "
                f"{planned.fault.name}: {struck.problem or f'{struck.images} images, {struck.seconds:.1f} s'}"
            )
            failures = failures + 1 if struck.problem else 0
            if failures == GIVE_UP_AFTER:
                self.result.problem = f"gave up after {failures} faults in a row that the job did not survive"
                break
        self._leave()
        self.progress.next_launch()
        self.result.wall_seconds = time.monotonic() - started
        self.result.useful_seconds = self.progress.useful_seconds

    def conclude(self, undisturbed_dir: Path) -> None:
        """Compare the newest checkpoint with that of an undisturbed run of the same length."""
        result, run_dir = self.result, self.job.run_dir
        result.steps = self.job.newest_step()
        undisturbed(undisturbed_dir, result.steps)
        result.same_weights = runs.digests(run_dir)[result.steps] == runs.digests(undisturbed_dir)[result.steps]
        result.same_losses = runs.losses(run_dir) == runs.losses(undisturbed_dir)
        try:
            runs.assert_each_metric_has_each_step_once(run_dir, result.steps)
        except AssertionError as error:
            result.problem = result.problem or f"a step is missing or recorded twice: {error}"

    def _strike(self, planned: Planned, following: Planned) -> Struck:
        fault, job, progress = planned.fault, self.job, self.progress
        mark = repeated = 0
        struck_at = time.time()
        try:
            self._make_ready(planned)
            progress.look()
            job.next = following.launch
            before, repeated, struck_at = progress.step, progress.repeated, time.time()
            left = len(job.left)
            felt = fault.strike(job, self.chance)
            progress.look()
            mark = progress.step + MORE_STEPS
            usual = progress.usual_seconds
            self._until(lambda: progress.step >= mark, "no further steps")
            self._until(felt, "the fault had no effect")
            mark = progress.step + MORE_STEPS  # a fault that is noticed late makes the job go back only now
            self._until(lambda: progress.step >= mark, "no further steps")
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            job.kill()
            return Struck(fault.name, str(error), 0, 0.0)
        seconds = progress.arrived(mark) - struck_at - (mark - before) * usual
        images = (progress.repeated - repeated) * BATCH
        unforeseen = [code for code in job.left[left:] if code not in fault.leaves]
        problem = f"launchers exited with {unforeseen}" if unforeseen else ""
        return Struck(fault.name, problem, images, max(seconds, 0.0))

    def _make_ready(self, planned: Planned) -> None:
        """Wait until the planned launch trains and has saved a checkpoint since the last fault."""
        job, progress = self.job, self.progress
        if job.launch != planned.launch:
            job.next = planned.launch
            self._leave()
        saved = job.newest_step()
        ranks = planned.launch.world_size
        self._until(
            lambda: job.newest_step() > saved and len(job.checkpoints()) > 1 and progress.ranks == ranks,
            "no checkpoint",
        )
        at = progress.step + self.chance.randrange(EVERY)
        self._until(lambda: progress.step >= at and len(job.ranks()) == ranks, "no training")
        time.sleep(self.chance.random() * progress.usual_seconds)

    def _until(self, condition: Callable[[], bool], problem: str) -> None:
        """Wait for the condition while the scheduler restarts what exits.

        Raises:
            TimeoutError: with the problem.
        """
        deadline = time.monotonic() + LIMIT_SECONDS
        while True:
            if self.job.tend():
                self.progress.next_launch()
            self.progress.look()
            if condition():
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"{problem} within {LIMIT_SECONDS} s")
            time.sleep(0.05)

    def _leave(self) -> None:
        running = [agent for agent in self.job.agents if agent.poll() is None]
        self.job.stop()
        codes = [agent.returncode for agent in running]
        if any(code != PREEMPTED for code in codes):
            self.result.problem = self.result.problem or f"the launchers exited with {codes} after a stop signal"


@contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    """A file system of 64 MB; without root, a plain directory."""
    directory.mkdir(parents=True)
    if os.geteuid():
        yield directory
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,nr_inodes=2000", "tmpfs", str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)
