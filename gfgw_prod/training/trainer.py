"""A run, top to bottom: build, resume, loop, finish."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from gfgw_prod.checkpoint.choosing import has_checkpoints, newest_good, quarantined
from gfgw_prod.checkpoint.reading import Checkpoint
from gfgw_prod.checkpoint.run_directory import prepare_directory
from gfgw_prod.checkpoint.saving import Saver
from gfgw_prod.checkpoint.storages import open_storages
from gfgw_prod.data.sources import open_table
from gfgw_prod.data.stream import CellRows
from gfgw_prod.distributed.world import World
from gfgw_prod.features.bank_cache import BankCache
from gfgw_prod.process.exit_codes import FINISHED, PREEMPTED, UserError
from gfgw_prod.process.signals import ignore_stop_signals
from gfgw_prod.process.watchdog import watch
from gfgw_prod.resilience import preemption, same_run
from gfgw_prod.resilience.bad_numbers import NumberGuard, checkpoint_before_streak, describe_streak
from gfgw_prod.resilience.starts import StartCounter
from gfgw_prod.settings import reading, schedule
from gfgw_prod.settings.config import Config
from gfgw_prod.telemetry.startup import Startup
from gfgw_prod.training.building import build, encode_bank
from gfgw_prod.training.checked_step import CheckedStep
from gfgw_prod.training.periodic_evaluation import PeriodicEvaluation
from gfgw_prod.training.reporting import Reporter
from gfgw_prod.training.state import CONSTANT, training_state


def train(config: Config) -> int:
    """Runs or resumes the run of ``config.run.dir``; returns the exit code.

    Raises:
        UserError: for settings, data, weights, ports or checkpoints that cannot work.
    """
    startup = Startup()
    joined = World.joined(config.run.device, config.run.threads, config.distributed.timeout_seconds)
    with joined as world, StartCounter(config.run.dir, config.resilience.max_no_progress, world) as starts:
        startup.done("rendezvous")
        run = Run(config, world, starts, startup)
        try:
            with watch.over(config.resilience.hang_seconds, run.dir, world.rank):
                run.resume()
                if finished := run.loop():
                    run.finish()
        except BaseException:
            run.saver.wait_after_error()
            raise
        finally:
            run.close()
    return FINISHED if finished else PREEMPTED


class Run:
    """One process's part of a run."""

    def __init__(self, config: Config, world: World, starts: StartCounter, startup: Startup):
        self.config, self.world, self.dir, self.startup = config, world, config.run.dir, startup
        self.step = self.first_step = 0
        self.report = Reporter(config, world, startup)
        same_run.require_same_settings(world.all_gather_object(config.model_dump(mode="json")))
        if world.world_size > config.cells:
            raise UserError(
                f"{world.world_size} ranks share {config.cells} cells; lower train.cell_size or run fewer ranks"
            )
        self.lock = world.together(lambda: prepare_directory(self.dir, self.report.say) if world.is_main else None)
        world.together(self.report.listen)
        self.report.tell_of_hangs()
        self.storages = world.together(lambda: open_storages(config.checkpoint, self.dir, make=world.is_main))
        starts.count(self.storages)

        phase = self.report.health.phase
        phase("starting: reading the data")
        self.table = open_table(config.data, world, self.report.say, config.telemetry.progress)
        startup.done("data")
        phase("starting: building the networks")
        fresh = not has_checkpoints(self.storages, world)
        self.training = build(config, world, self.table, self.report.say, fresh=fresh)
        self.guard = NumberGuard(config.resilience)
        self.checked_step = CheckedStep(
            self.training,
            self.guard,
            world,
            audit_every_steps=config.resilience.audit_every_steps,
            replicated=self.training.parallel.replicated,
            hosts=self.report.hosts,
            log=self.report.say,
        )
        # Before a checkpoint is chosen: what an earlier process still commits must be there to be chosen.
        self.saver = Saver(config.checkpoint, self.storages, world, self.report.say, CONSTANT)
        self.stop = preemption.StopRequest(world, config.distributed.timeout_seconds)
        self.evaluation = world.together(lambda: PeriodicEvaluation(config, self.table, world, self.stop, self.report))
        startup.done("generator")

    @property
    def images(self) -> int:
        """Images seen."""
        return self.step * self.config.train.batch_size

    def resume(self) -> None:
        """Takes up the newest good checkpoint of the run directory, or encodes the bank for a new run."""
        with self._unwatched("starting: looking for a checkpoint"):
            found = newest_good(self.storages, self.world, self.report.say, progress=self.config.telemetry.progress)
            self.damaged = len(quarantined(self.storages)) if self.world.is_main else 0
            self.facts = same_run.run_facts(self.config, self.table, self.training.objective.frozen, self.world.device)
            by_rank = self.world.all_gather_object(self.facts)
        if found is not None:
            self.step = self.first_step = found.step
        for change in self.world.together(lambda: self._accepted_changes(found, by_rank)):
            self.report.say(f"run.allow_changes: going on with {change}")
        cache = self.world.together(lambda: BankCache.of(self.config, self.facts, self.report.say_of_own))
        self.world.together(lambda: self.report.open(self.step, found))
        if found is not None:
            with self._unwatched(f"resuming from {found.name}"):
                found.load(self._state(), self.world)
                self.world.barrier()
            self.saver.resume_from(found)
            self.report.say(f"resumed {self.dir} at {self.images / 1000:.1f} kimg from {found.name}")
        else:
            encode_bank(self.training, self._encoded, cache)
            with watch.paused():  # for ranks that take longer; each has a watch of its own
                self.world.barrier()
        self.report.health.phase("starting: making ready for the first step")
        self.saver.preallocate(self._state())
        self.report.write(self.dir / "config.yaml", partial(reading.write_yaml, self.config))
        self.startup.done("bank" if found is None else "checkpoint")

    def stream(self, last_step: int) -> Iterator[CellRows]:
        """This rank's cells from the present step to the last, exclusive."""
        size = self.config.train.cell_size
        return self.training.feed.stream(self.training.parallel.spread, self.config.seed, self.step, last_step, size)

    def loop(self) -> bool:
        """Steps until ``train.total_kimg``, with records, pictures and checkpoints at their intervals.

        Returns:
            Whether it came that far: told to stop, it saves the state and returns ``False``.
        """
        config = self.config
        stream = self.stream(config.total_steps)
        self.report.begin(self.step, self.training.parallel.spread)
        self.stop.install_handlers()
        while self.step < config.total_steps:
            watch.progress(f"in step {self.step + 1}")
            if self.stop.requested_anywhere():
                self.report.health.phase("told to stop: saving")
                self._save()
                self.saver.finish(lambda: True)
                if self.world.world_size > 1:  # the launcher signals the other ranks once one exits
                    ignore_stop_signals()
                self.report.stopped(self.images)
                return False
            if not self.evaluation.measure(self.step, self.images, self.training.ema, self.training.precision):
                continue  # told to stop
            with self.report.own_time:
                found = self.checked_step(self.step, stream)
            self.step += 1
            self.report.health.made(self.step, self.images)
            if self.guard.needs_rollback:
                self._roll_back()
            last = self.step == config.total_steps
            if last or self.step == self.first_step + 1 or self._due(config.telemetry.log_every_kimg):
                told = {
                    "run/damaged_checkpoints": self.damaged,
                    **self.checked_step.values(),
                    **self.training.values(),
                }
                self.report.record(self.step, self.images, found, self.training.matcher.usage, told)
            if last or self._due(config.telemetry.samples_every_kimg):
                with self.training.precision.autocast():
                    self.report.picture(self.images, self.training.ema, self.table)
            if last or self._due(config.checkpoint.every_kimg):
                self._save()
            self._tell_of_saves()
        while self.saver.saved_step != self.step:  # a last save that fails is tried again; too often is an error
            self._save()
            self.saver.join()
        self.saver.finish(lambda: self.stop.requested_here)
        return True

    def finish(self) -> None:
        """Measures the last weights, closes the telemetry and says what there is now and what to do next."""
        self.evaluation.measure(self.step, self.images, self.training.ema, self.training.precision)
        self.report.finished(self.step)

    def close(self) -> None:
        """Tells what is still to be told, also of saves that failed."""
        self._tell_of_saves()
        self.report.close()
        if self.lock is not None:
            self.lock.close()

    @contextmanager
    def _unwatched(self, doing: str) -> Iterator[None]:
        """Within, things take as long as a disk or a network takes."""
        self.report.health.phase(doing)
        with watch.paused():
            yield

    def _encoded(self, rows: int) -> None:
        watch.progress("encoding the bank")
        self.report.encoded(rows, len(self.training.matcher.bank.local))

    def _due(self, interval_kimg: float) -> bool:
        return schedule.is_due(interval_kimg, self.config.train.batch_size, self.images)

    def _save(self) -> None:
        state = self._state()
        self.checked_step.check_replicas(state)
        facts = {
            **self.facts,
            **self.report.productive(),
            **self.guard.counts(),
            "regular": self._due(self.config.checkpoint.every_kimg),
            "streak_from": self.step - self.guard.skipped_in_a_row,
        }
        self.saver.save(state, step=self.step, images=self.images, facts=facts)

    def _roll_back(self) -> None:
        """Goes on with the state of a checkpoint before the bad steps; those between are left out.

        Raises:
            NoProgressError: if it has come to this before, or there is no such checkpoint.
        """
        skipped, rollbacks, problem = self.guard.skipped, self.guard.rollbacks, describe_streak(self.guard, self.step)
        self.saver.join()
        with self._unwatched("going back to a checkpoint"):
            found = checkpoint_before_streak(self.guard, self.step, self.storages, self.world, self.report.say)
            found.load(self._state(), self.world)
        self.guard.record_rollback(skipped, rollbacks)
        self.report.say(f"{problem}: going on from there with the state of {found.name}, without the steps between")
        self._save()

    def _tell_of_saves(self) -> None:
        for step, images, values in self.saver.take_metrics():
            self.report.values(step, images, values)

    def _state(self) -> dict[str, torch.Tensor]:
        return training_state(self.training, guard=self.guard)

    def _accepted_changes(self, found: Checkpoint | None, by_rank: list[dict[str, Any]]) -> list[str]:
        changed = [] if found is None else same_run.accept_changes(found.manifest, self.facts)
        return changed + same_run.accept_rank_differences(by_rank, self.facts, self.step)
