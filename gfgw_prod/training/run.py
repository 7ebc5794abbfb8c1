"""A run from start to end: validate, build, resume, loop, finish."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from gfgw_prod.checkpoint.choosing import has_checkpoints
from gfgw_prod.checkpoint.run_directory import prepare_directory
from gfgw_prod.checkpoint.saving import Saver
from gfgw_prod.checkpoint.storages import open_storages
from gfgw_prod.data.sources import open_table
from gfgw_prod.data.stream import CellRows
from gfgw_prod.distributed.torchrun import reports_for_node
from gfgw_prod.distributed.world import World
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.process.standard_streams import Warned
from gfgw_prod.process.watchdog import watch
from gfgw_prod.resilience import preemption, same_run
from gfgw_prod.resilience.bad_numbers import checkpoint_before_streak, describe_streak
from gfgw_prod.resilience.membership import Membership
from gfgw_prod.resilience.starts import StartCounter
from gfgw_prod.settings import schedule
from gfgw_prod.settings.config import Config
from gfgw_prod.telemetry.health import Health
from gfgw_prod.telemetry.node import NodeTelemetry
from gfgw_prod.telemetry.startup import Startup
from gfgw_prod.training.building import build
from gfgw_prod.training.checked_step import CheckedStep
from gfgw_prod.training.grids import Grids
from gfgw_prod.training.kept import Kept
from gfgw_prod.training.periodic_evaluation import PeriodicEvaluation
from gfgw_prod.training.profiling import StepProfiler
from gfgw_prod.training.reporting import Reporter
from gfgw_prod.training.state import CONSTANT, training_state
from gfgw_prod.training.stopping import save_and_stop


class Run:
    """One rank's part of a run. The constructor validates and builds; before ``loop`` call ``resume``
    (``resuming.py``), or ``continue_in_place`` (``in_place.py``) if the run goes on with other ranks.

    Args:
        membership: of this rank in generations, if ranks may join and leave.
        kept: what this rank has built already, if it continues with other peers.

    Attributes:
        first_step: completed steps when this rank was started or its peers changed.
        reached: completed steps of any rank then; more than ``first_step`` if the run continues from copies.
        holds_state: whether this rank can send the state to another.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        starts: StartCounter,
        startup: Startup,
        membership: Membership | None = None,
        kept: Kept | None = None,
    ):
        self.config, self.world, self.dir, self.startup = config, world, config.run.dir, startup
        self.membership = membership
        self.first_step = self.reached = 0
        self.holds_state = False

        # Output: health for probes, log lines, metrics.
        self.health = Health(config.resilience.hang_seconds, watch.silence)
        if kept is not None:
            self.health.enter_phase("going on with other ranks")
        self.node = NodeTelemetry(config.telemetry, self.health, is_first=reports_for_node())
        self.reporter = Reporter(config, world, startup, self.node)

        # Validate: all ranks have the same settings, and each has a cell.
        same_run.require_same_settings(dict(enumerate(world.all_gather_object(config.model_dump(mode="json")))))
        if world.world_size > config.cells:
            raise UserError(
                f"{world.world_size} ranks share {config.cells} cells; lower train.cell_size or start fewer (NPROC)"
            )

        with ExitStack() as held:  # a start that fails must not keep them: its process may be a notebook's
            self._build(starts, kept, held)
            self._held = held.pop_all()

    def _build(self, starts: StartCounter, kept: Kept | None, held: ExitStack) -> None:
        """Claim the directory, the port and the storages, and build the step; ``held`` releases them."""
        config, world, startup = self.config, self.world, self.startup
        lock = world.on_all_ranks(lambda: prepare_directory(self.dir, self.reporter.log) if world.is_main else None)
        if lock is not None:
            held.callback(lock.close)
        held.callback(self.reporter.close)
        world.on_all_ranks(self.node.listen)
        self.reporter.keep_stacks()
        self.storages = world.on_all_ranks(lambda: open_storages(config.checkpoint, self.dir, make=world.is_main))

        # Open the data set, build the networks, and the step with its checks.
        if kept is None:
            starts.count(self.storages)
            kept = self._built()
        else:
            starts.join(world)
        self.kept, self.training, self.guard = kept, kept.training, kept.guard
        held.callback(self._end_feed)
        self.grids = Grids(config, self.training.table)
        self.checked_step = CheckedStep(
            self.training,
            self.guard,
            world,
            audit_every_steps=config.resilience.audit_every_steps,
            hosts=self.reporter.hosts,
            log=self.reporter.log,
        )

        # Claim the checkpoints. Only then may ``resume`` choose one: an earlier process may still be committing.
        self.saver = Saver(config.checkpoint, self.storages, world, self.reporter.log, CONSTANT)
        held.callback(self.saver.close)

        # What interrupts training.
        self.stop = preemption.StopRequest(
            world, config.distributed.timeout_seconds, self._is_save_overdue, self._is_time_up
        )
        self.evaluation = world.on_all_ranks(
            lambda: PeriodicEvaluation(config, self.training.table, world, self.stop, self.reporter)
        )
        startup.done("generator")

    def _built(self) -> Kept:
        """The data set opened, and the networks built on all ranks."""
        config, world, log = self.config, self.world, self.reporter.log
        self.health.enter_phase("starting: reading the data")
        table = open_table(config.data, world, log, config.telemetry.progress)
        self.startup.done("data")
        self.health.enter_phase("starting: building the networks")
        return Kept.of(build(config, world, table, log, fresh=not has_checkpoints(self.storages, world)))

    @property
    def step(self) -> int:
        """Completed steps."""
        return self.kept.step

    @property
    def images(self) -> int:
        """Images seen."""
        return self.step * self.config.train.batch_size

    def state(self) -> dict[str, torch.Tensor]:
        """The tensors of a checkpoint, by name."""
        return training_state(self.training, guard=self.guard.tensors())

    def stream(self, last_step: int) -> Iterator[CellRows]:
        """This rank's cells from the current step to ``last_step``, exclusive."""
        size = self.config.train.cell_size
        return self.training.feed.stream(
            self.training.parallel.assignment, self.config.seed, self.step, last_step, size
        )

    def loop(self) -> bool:
        """Train until ``train.total_kimg``, ``train.max_minutes`` or a stop signal, and save the state.

        Returns:
            ``False`` after a stop signal, else ``True``.
        """
        config, telemetry = self.config, self.config.telemetry
        stream = self.stream(config.total_steps)
        self.reporter.begin(self.step, self.training, self.checked_step, self.kept.step_seconds)
        recorded = config.train.profile_steps if self.world.is_main else 0
        profiler = StepProfiler(self.step, recorded, self.dir / "profile", self.reporter.log)
        self.stop.install_handlers()
        self.stop.requested_here |= self.kept.told_to_stop
        if self.membership is not None:
            self.kept.make_safe(self.reporter.productive_seconds())
            self.membership.publish_ready(self.reached, self.kept.ranks_multiple, config.cells, self.kept.facts)
        self.holds_state = True
        while self.step < config.total_steps and not self.stop.time_is_up:
            watch.progress(f"in step {self.step + 1}")

            # Has a new generation begun? Stop?
            if self.membership is not None:
                self.membership.leave_for_newer()
            if self.stop.requested_anywhere():
                save_and_stop(self)
                return False

            # Evaluate? A stop signal interrupts it.
            if not self.evaluation.measure(self.step, self.images, self.training.ema, self.training.precision):
                continue

            # Step.
            profiler.before(self.step)
            last = self.step + 1 == config.total_steps or self.stop.time_is_up
            due = last or self.step == self.first_step or schedule.is_record_due(config, self.step)
            recorded = due or schedule.is_first_of_its_kind(config, self.step)
            with self.reporter.own_time:
                result = self.checked_step(self.step, stream, recorded=recorded)
            profiler.after(self.step)
            self.kept.step += 1
            self.health.step_done(self.step, self.images)
            self.reporter.show_step(self.images)
            if self.guard.needs_rollback:
                self._roll_back()
            self.kept.copy_if_due(self.reporter.productive_seconds)

            # Record, draw, save: at their intervals, and after the last step.
            if due:
                self.reporter.record(self.step, self.images, result)
            elif recorded:
                self.reporter.record_step(self.step, self.images, self.checked_step.measure(result))
            if last or self._is_due(telemetry.samples_every_kimg):
                with self.training.precision.autocast():
                    self.grids.show_samples(self.reporter, self.images, self.training.ema)
            if last or self._is_due(config.checkpoint.every_kimg) or self.stop.save_is_due:
                self.save()
            self._record_saves()
        self.end_steps()
        while self.saver.saved_step != self.step:  # retry a failed last save; too many failures raise
            self.save()
            self.saver.join()
        self.saver.finish(lambda: self.stop.requested_here)
        return True

    def end_steps(self, *, of_all: bool = True) -> None:
        """Make no more steps: from now on this rank gives its state to no other, and, with ``of_all``, none joins."""
        self.holds_state = False
        if self.membership is not None and of_all:
            self.membership.end()
            self.kept.finish_copies()

    def finish(self) -> None:
        """Evaluate the last weights, and log a summary."""
        self.evaluation.measure(self.step, self.images, self.training.ema, self.training.precision)
        self.reporter.finished(self.step)

    def close(self) -> None:
        """Record the last saves, also failed ones, and release what the run holds."""
        self._record_saves()
        self._held.close()

    @contextmanager
    def unwatched(self, phase: str) -> Iterator[None]:
        """Context in which this rank waits for a disk or a network, and the watchdog is paused."""
        self.health.enter_phase(phase)
        with watch.paused():
            yield

    def _end_feed(self) -> None:
        self.training.feed.close()  # that of the current process group

    def _is_due(self, interval_kimg: float) -> bool:
        return schedule.is_due(interval_kimg, self.config.train.batch_size, self.images)

    def _is_save_overdue(self) -> bool:
        """Whether the last save is longer ago than the settings allow, by this rank's clock."""
        seconds = self.config.checkpoint.every_minutes * 60
        return 0 < seconds <= time.monotonic() - self.kept.saved_at and not self.saver.is_saving()

    def _is_time_up(self) -> bool:
        """Whether this start has trained as long as the settings allow, by this rank's clock."""
        return 0 < self.config.train.max_minutes * 60 <= time.monotonic() - self.kept.built_at

    def save(self) -> None:
        """Save the state in the background. Collective."""
        state, self.kept.saved_at = self.state(), time.monotonic()
        self.checked_step.check_replicas(state)
        facts = {
            **self.kept.facts,
            **self.reporter.manifest_facts(),
            **self.guard.counts(),
            "regular": self._is_due(self.config.checkpoint.every_kimg),
            "streak_from": self.step - self.guard.skipped_in_a_row,
        }
        self.saver.save(state, step=self.step, images=self.images, facts=facts)

    def _record_saves(self) -> None:
        for step, images, values in self.saver.take_metrics():
            self.reporter.record_values(step, images, values)

    def _roll_back(self) -> None:
        """Load the state from before the bad steps, and go on after them: they are skipped.

        Raises:
            NoProgressError: at the second rollback, or if there is no such checkpoint.
        """
        skipped, rollbacks, problem = self.guard.skipped, self.guard.rollbacks, describe_streak(self.guard, self.step)
        self.holds_state = False
        self.saver.join()
        with self.unwatched("going back to a checkpoint"):
            found = checkpoint_before_streak(self.guard, self.step, self.storages, self.world, self.reporter.log)
            found.load(self.state(), self.world)
        self.guard.record_rollback(skipped, rollbacks)
        if self.membership is not None:
            self.kept.make_safe(self.reporter.productive_seconds())
        self.holds_state = True
        self.reporter.log(Warned(f"{problem}: rolled back to the state of {found.name}; step {self.step + 1} is next"))
        self.save()
