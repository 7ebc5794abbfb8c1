"""A run from start to end: validate, build, resume, loop, finish."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from gfgw_prod.checkpoint.choosing import has_checkpoints, newest_good, quarantined
from gfgw_prod.checkpoint.reading import Checkpoint
from gfgw_prod.checkpoint.run_directory import prepare_directory
from gfgw_prod.checkpoint.run_settings import file_to_write, recorded
from gfgw_prod.checkpoint.saving import Saver
from gfgw_prod.checkpoint.storages import open_storages
from gfgw_prod.data.sources import open_table
from gfgw_prod.data.stream import CellRows
from gfgw_prod.distributed.torchrun import reports_for_node
from gfgw_prod.distributed.world import World
from gfgw_prod.features.bank_cache import BankCache
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.process.signals import ignore_stop_signals
from gfgw_prod.process.standard_streams import Warned
from gfgw_prod.process.watchdog import watch
from gfgw_prod.resilience import preemption, same_run
from gfgw_prod.resilience.bad_numbers import NumberGuard, checkpoint_before_streak, describe_streak
from gfgw_prod.resilience.membership import Membership
from gfgw_prod.resilience.starts import StartCounter
from gfgw_prod.settings import reading, schedule
from gfgw_prod.settings.config import Config
from gfgw_prod.telemetry.health import Health
from gfgw_prod.telemetry.node import Node
from gfgw_prod.telemetry.startup import Startup
from gfgw_prod.training.building import build, encode_bank
from gfgw_prod.training.checked_step import CheckedStep
from gfgw_prod.training.grids import Grids
from gfgw_prod.training.kept import Kept, keep_whole_tables
from gfgw_prod.training.periodic_evaluation import PeriodicEvaluation
from gfgw_prod.training.profiling import StepProfiler
from gfgw_prod.training.reporting import Reporter
from gfgw_prod.training.state import CONSTANT, training_state


class Run:
    """One rank's part of a run. The constructor validates and builds; call ``resume`` before ``loop``, or
    ``go_on`` if it goes on in place.

    Args:
        membership: of this rank, if lost ranks are replaced.
        kept: what this rank has already, if it goes on with a new peer or is one.
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
        self.membership, self.kept = membership, kept
        self.step = self.first_step = 0  # completed steps, now and when this process started or took its peers
        self.holds_state = False  # whether this rank can give the state of ``step`` to another

        # Output: health for probes, log lines, metrics.
        self.health = Health(config.resilience.hang_seconds, watch.silence)
        if kept is not None:
            self.health.enter_phase("replacing a lost rank")
        self.node = Node(config.telemetry, self.health, is_first=reports_for_node())
        self.reporter = Reporter(config, world, startup, self.node)

        # Validate: all ranks have the same settings, and each has a cell.
        same_run.require_same_settings(world.all_gather_object(config.model_dump(mode="json")))
        if world.world_size > config.cells:
            raise UserError(
                f"{world.world_size} ranks share {config.cells} cells; lower train.cell_size or start fewer (NPROC)"
            )

        with ExitStack() as held:  # a start that fails must not keep them: its process may be a notebook's
            self._build(starts, held)
            self._held = held.pop_all()

    def _build(self, starts: StartCounter, held: ExitStack) -> None:
        """Claim the directory, the port and the storages, and build the step; ``held`` releases them."""
        config, world, startup = self.config, self.world, self.startup
        lock = world.on_all_ranks(lambda: prepare_directory(self.dir, self.reporter.log) if world.is_main else None)
        if lock is not None:
            held.callback(lock.close)
        held.callback(self.reporter.close)
        world.on_all_ranks(self.node.listen)
        self.reporter.keep_stacks()
        self.storages = world.on_all_ranks(lambda: open_storages(config.checkpoint, self.dir, make=world.is_main))
        if self.kept is None:
            starts.count(self.storages)
        else:
            starts.join()

        # Open the data set.
        if self.kept is None:
            self.health.enter_phase("starting: reading the data")
            self.table = open_table(config.data, world, self.reporter.log, config.telemetry.progress)
        else:
            self.table = self.kept.table
        self.grids = Grids(config, self.table)
        startup.done("data")

        # Build the networks, and the step with its checks.
        if self.kept is None:
            self.health.enter_phase("starting: building the networks")
            fresh = not has_checkpoints(self.storages, world)
            self.training = build(config, world, self.table, self.reporter.log, fresh=fresh)
            self.guard = NumberGuard(config.resilience)
        else:
            self.training, self.guard = self.kept.training, self.kept.guard
        held.callback(self._end_feed)
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
        now = time.monotonic()
        self.built_at, self.saved_at = (now, now) if self.kept is None else (self.kept.built_at, self.kept.saved_at)
        self.stop = preemption.StopRequest(
            world, config.distributed.timeout_seconds, self._is_save_overdue, self._is_time_up
        )
        self.evaluation = world.on_all_ranks(
            lambda: PeriodicEvaluation(config, self.table, world, self.stop, self.reporter)
        )
        startup.done("generator")

    @property
    def images(self) -> int:
        """Images seen."""
        return self.step * self.config.train.batch_size

    def state(self) -> dict[str, torch.Tensor]:
        """The tensors of a checkpoint, by name."""
        return training_state(self.training, guard=self.guard.tensors())

    def resume(self) -> None:
        """Load the newest good checkpoint of the run; for a new run, encode the bank."""
        with self._unwatched("starting: looking for a checkpoint"):
            found = newest_good(self.storages, self.world, self.reporter.log, progress=self.config.telemetry.progress)
            damaged = len(quarantined(self.storages)) if self.world.is_main else 0
            self.facts = same_run.run_facts(self.config, self.table, self.training.objective.frozen, self.world.device)
            by_rank = self.world.all_gather_object(self.facts)
        if found is not None:
            self.step = self.first_step = found.step
        for change in self.world.on_all_ranks(lambda: self._accept_changes(found, by_rank)):
            self.reporter.log(f"run.allow_changes: going on with {change}")
        cache = self.world.on_all_ranks(lambda: BankCache.of(self.config, self.facts, self.reporter.log_from_any_rank))
        parameters = sum(p.numel() for p in self.training.parallel.module.parameters())
        self.reporter.introduce(self.step, self.table, parameters, "" if found is None else found.name)
        manifest = {} if found is None else found.manifest
        self.world.on_all_ranks(lambda: self.reporter.open(self.step, manifest, damaged))
        if found is not None:
            with self._unwatched(f"resuming from {found.name}"):
                found.load(self.state(), self.world)
                self.world.barrier()
            self.saver.resume_from(found)
            self.reporter.log(f"resumed at {self.images / 1000:.1f} kimg")
        else:
            self.reporter.show_data(self.grids)
            encode_bank(self.training, self._show_encoding, cache)
            with watch.paused():  # other ranks may take longer, and have watches of their own
                self.world.barrier()
        self.health.enter_phase("starting: making ready for the first step")
        self.saver.preallocate(self.state())
        self.reporter.write_file(file_to_write(self.dir), partial(reading.write_yaml, recorded(self.config)))
        self.startup.done("bank" if found is None else "checkpoint")
        if self.membership is not None:
            keep_whole_tables(self.training)

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
        self.reporter.begin(self.step, self.training, self.checked_step)
        recorded = config.train.profile_steps if self.world.is_main else 0
        profiler = StepProfiler(self.step, recorded, self.dir / "profile", self.reporter.log)
        self.stop.install_handlers()
        self.holds_state = True
        if self.membership is not None:
            self.membership.hold_state(self.step)
        while self.step < config.total_steps and not self.stop.time_is_up:
            watch.progress(f"in step {self.step + 1}")

            # Stop?
            if self.stop.requested_anywhere():
                self._make_no_more_steps()
                self._save_and_stop()
                return False

            # Evaluate? A stop signal interrupts it.
            if not self.evaluation.measure(self.step, self.images, self.training.ema, self.training.precision):
                continue

            # Step.
            profiler.before(self.step)
            last = self.step + 1 == config.total_steps or self.stop.time_is_up
            due = last or self.step == self.first_step or schedule.is_recorded(config, self.step)
            with self.reporter.own_time:
                result = self.checked_step(self.step, stream, recorded=due)
            profiler.after(self.step)
            self.step += 1
            self.health.step_done(self.step, self.images)
            self.reporter.show_step(self.images)
            if self.guard.needs_rollback:
                self._roll_back()

            # Record, draw, save: at their intervals, and after the last step.
            if due:
                self.reporter.record(self.step, self.images, result)
            if last or self._is_due(telemetry.samples_every_kimg):
                with self.training.precision.autocast():
                    self.reporter.draw_samples(self.images, self.grids, self.training.ema)
            if last or self._is_due(config.checkpoint.every_kimg) or self.stop.save_is_due:
                self._save()
            self._record_saves()
        self._make_no_more_steps()
        while self.saver.saved_step != self.step:  # retry a failed last save; too many failures raise
            self._save()
            self.saver.join()
        self.saver.finish(lambda: self.stop.requested_here)
        return True

    def _make_no_more_steps(self) -> None:
        self.holds_state = False
        if self.membership is not None:
            self.membership.end()

    def finish(self) -> None:
        """Evaluate the last weights, and log a summary."""
        self.evaluation.measure(self.step, self.images, self.training.ema, self.training.precision)
        self.reporter.finished(self.step)

    def close(self) -> None:
        """Record the last saves, also failed ones, and release what the run holds."""
        self._record_saves()
        self._held.close()

    @contextmanager
    def _unwatched(self, phase: str) -> Iterator[None]:
        """Within, this rank waits for a disk or a network, and the watchdog is paused."""
        self.health.enter_phase(phase)
        with watch.paused():
            yield

    def _show_encoding(self, rows: int) -> None:
        watch.progress("encoding the bank")
        self.reporter.show_encoding(rows, len(self.training.matcher.bank.local))

    def _end_feed(self) -> None:
        self.training.feed.close()  # of the present process group

    def _is_due(self, interval_kimg: float) -> bool:
        return schedule.is_due(interval_kimg, self.config.train.batch_size, self.images)

    def _is_save_overdue(self) -> bool:
        """Whether the last save is longer ago than the settings allow, by this rank's clock."""
        seconds = self.config.checkpoint.every_minutes * 60
        return 0 < seconds <= time.monotonic() - self.saved_at and not self.saver.is_saving()

    def _is_time_up(self) -> bool:
        """Whether this start has trained as long as the settings allow, by this rank's clock."""
        return 0 < self.config.train.max_minutes * 60 <= time.monotonic() - self.built_at

    def _save(self) -> None:
        state, self.saved_at = self.state(), time.monotonic()
        self.checked_step.check_replicas(state)
        facts = {
            **self.facts,
            **self.reporter.manifest_facts(),
            **self.guard.counts(),
            "regular": self._is_due(self.config.checkpoint.every_kimg),
            "streak_from": self.step - self.guard.skipped_in_a_row,
        }
        self.saver.save(state, step=self.step, images=self.images, facts=facts)

    def _record_saves(self) -> None:
        for step, images, values in self.saver.take_metrics():
            self.reporter.record_values(step, images, values)

    def _save_and_stop(self) -> None:
        self.health.enter_phase("told to stop: saving")
        self._save()
        self.saver.finish(lambda: True)
        if self.world.world_size > 1:  # the launcher signals the other ranks once one exits
            ignore_stop_signals()
        self.reporter.stopped(self.images)

    def _roll_back(self) -> None:
        """Load the state from before the bad steps, and go on after them: they are skipped.

        Raises:
            NoProgressError: at the second rollback, or if there is no such checkpoint.
        """
        skipped, rollbacks, problem = self.guard.skipped, self.guard.rollbacks, describe_streak(self.guard, self.step)
        self.holds_state = False
        self.saver.join()
        with self._unwatched("going back to a checkpoint"):
            found = checkpoint_before_streak(self.guard, self.step, self.storages, self.world, self.reporter.log)
            found.load(self.state(), self.world)
        self.guard.record_rollback(skipped, rollbacks)
        self.holds_state = True
        self.reporter.log(Warned(f"{problem}: rolled back to the state of {found.name}; step {self.step + 1} is next"))
        self._save()

    def _accept_changes(self, found: Checkpoint | None, by_rank: list[dict[str, Any]]) -> list[str]:
        """Changes since the checkpoint, and differences between ranks, that ``run.allow_changes`` accepts."""
        if found is not None:
            same_run.require_length(self.config, found.step)
        changes = [] if found is None else same_run.accept_changes(found.manifest, self.facts)
        return changes + same_run.accept_rank_differences(by_rank, self.facts, self.step)
