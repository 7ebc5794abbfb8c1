"""What a run reports: log lines, metric records, pictures, and a summary at the end."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from gfgw_prod.checkpoint.run_directory import HISTORY
from gfgw_prod.data.sources import Table
from gfgw_prod.distributed.world import World
from gfgw_prod.process import restart_causes
from gfgw_prod.process.durable import clear_partials
from gfgw_prod.process.exit_codes import reason_of
from gfgw_prod.process.meter import Meter
from gfgw_prod.process.stacks import keep_stacks_of_hung_ranks
from gfgw_prod.process.standard_streams import Warned, log, log_times
from gfgw_prod.process.watchdog import watch
from gfgw_prod.resilience.bad_numbers import COUNT_NAMES
from gfgw_prod.resilience.ledger import PRODUCTIVE, End, Ledger
from gfgw_prod.sampling.pictures import write_png
from gfgw_prod.settings.config import Config
from gfgw_prod.settings.schedule import schedules_at
from gfgw_prod.telemetry.build import build_labels
from gfgw_prod.telemetry.node import NodeTelemetry
from gfgw_prod.telemetry.registered_sinks import open_sinks
from gfgw_prod.telemetry.sinks import Sink, Telemetry, Value, Values, last_recorded_step
from gfgw_prod.telemetry.startup import Startup
from gfgw_prod.training.checked_step import CheckedStep
from gfgw_prod.training.log_lines import append_to_history, describe_start, first_lines, last_lines, stop_lines
from gfgw_prod.training.rank_metrics import RankMetrics
from gfgw_prod.training.records import StepRecords
from gfgw_prod.training.step import TrainingStep
from gfgw_prod.training.step_data import StepResult

CLOSE_SECONDS = 10.0  # for a sink to send what it has, while a scheduler or other ranks wait


class Reporter:
    """What rank 0 reports; other ranks only log lines of their own (``log_from_any_rank``)."""

    def __init__(self, config: Config, world: World, startup: Startup, node: NodeTelemetry):
        self.config, self.world, self.dir = config, world, config.run.dir
        self._node, self._health, self._startup = node, node.health, startup
        by_rank = world.all_gather_object((socket.gethostname(), restart_causes.take_from_launcher()))
        self.hosts = [host for host, _ in by_rank]
        self._cause = restart_causes.first_of(cause for _, cause in by_rank)
        self._ranks = RankMetrics(world, self.hosts, config.resilience.straggler_ratio, self.log)
        self.own_time = self._ranks.own_time
        self.evaluates: list[str] = []  # what evaluations measure, a line each
        self.fd_in = self.measured = ""  # the space in which evaluations measure fd; the last figures, in words
        self._start: dict[str, Any] = {}  # facts of this start, on rank 0
        self._plan: dict[str, Value] = {  # constant over this start, for a dashboard to compare the rest with
            "run/planned_images": config.total_steps * config.train.batch_size,
            "run/expected_ranks": max(restart_causes.expected_ranks(), world.world_size),
            "run/checkpoint_interval_images": config.checkpoint.every_kimg * 1000,
        }
        self._telemetry = Telemetry()
        self._ledger: Ledger | None = None  # on rank 0
        self._meter: Meter | None = None
        self._first_record, self._warned = True, False
        self._end: End = "error"  # unless the run stops or finishes

    def log(self, line: str) -> None:
        """Log a line, on rank 0."""
        if self.world.is_main:
            log(line)

    def log_from_any_rank(self, line: str) -> None:
        """Log a line with the number of this rank."""
        log(line if self.world.world_size == 1 else type(line)(f"rank {self.world.rank}: {line}"))

    def write_file(self, path: Path, write: Callable[[Path], None]) -> None:
        """Write a file for people, on rank 0. If that fails, log it and go on."""
        try:
            if self.world.is_main:
                path.parent.mkdir(exist_ok=True)
                write(path)
        except OSError as error:
            self.log(Warned(f"{path} could not be written ({reason_of(error)}); the run goes on"))

    def keep_stacks(self) -> None:
        """Keep the stacks that hung ranks of the last start wrote, and record the hang as the cause of this start."""
        if self.world.is_main and keep_stacks_of_hung_ranks(self.dir, self.log):
            self._cause = "hang"

    def show_encoding(self, rows: int, total: int) -> None:
        """Show how many rows of this rank's part of the bank are encoded: it takes minutes with a large network."""
        self._health.enter_phase(f"starting: encoding the bank, {rows:,} of {total:,} rows")
        if self._meter is None:
            self._meter = self._new_meter("encoding the bank", total, "rows of rank 0")
        self._meter.advance_to(rows)

    def introduce(self, step: int, table: Table, parameters: int, resumes: str, in_place: str = "") -> None:
        """Gather the facts of this start, and log them.

        Args:
            parameters: number of the generator's parameters.
            resumes: name of the checkpoint that the run resumes from; empty for a new run.
            in_place: how its ranks have changed, if the run continues in place instead of starting.
        """
        log_times()
        if self.world.is_main:
            self._start = describe_start(self.world, self.hosts, step)
            self._start["fd_in"] = f"{self.fd_in}, {self.config.evaluation.num:,}" if self.fd_in else ""
            if in_place:
                self.log(f"{in_place}; the run goes on after step {step:,}")
            for line in () if in_place else first_lines(self.config, self._start, table, parameters, resumes):
                self.log(line)
            for line in self.evaluates:
                self.log(f"evaluation: {line}")

    def open(self, step: int, manifest: Mapping[str, Any], damaged: int) -> None:
        """Open the ledger and the sinks, and append this start to the history of the run.

        Args:
            manifest: of the state that the run goes on from; empty for a new run.
            damaged: number of quarantined checkpoints.
        """
        images = step * self.config.train.batch_size
        self._health.set_position(step, images)
        self._node.show_state()
        self._plan["run/damaged_checkpoints"] = damaged
        self._productive_before = float(manifest.get(PRODUCTIVE, 0.0))
        if self.world.is_main:
            clear_partials(self.dir)
            self._ledger = Ledger(self.dir)
            self._start["cause"] = self._ledger.begin(
                images,
                seen=last_recorded_step(self.dir / "stats.jsonl") * self.config.train.batch_size,
                starting_seconds=self._startup.total,
                cause=self._cause,
                productive_seconds=self._productive_before,
            )
            self.write_file(self.dir / HISTORY, partial(append_to_history, self._start))
            settings = self.config.model_dump(mode="json")
            if self.fd_in:  # runs are compared by fd, so a tracker shows what `auto` came to
                settings["evaluation"]["features"] = self.fd_in
            self._telemetry = Telemetry.open(
                self.dir,
                self._node_sinks(step, images, manifest),
                step=step,
                images=images,
                settings=settings,
                log=self.log,
                registered=open_sinks(self.config.telemetry.sinks, self.dir, settings, step),
            )

    def begin(self, step: int, training: TrainingStep, checked_step: CheckedStep, step_seconds: float = 0.0) -> None:
        """Begin training after ``step`` steps: time counts from here on.

        Args:
            step_seconds: seconds of a step, if they are known; else 0.
        """
        self._first_step, self._started = step, time.monotonic()
        self._records = StepRecords(self.config, training, checked_step, self._ranks, step, step_seconds)
        size = self.config.train.batch_size
        if self._meter is not None:
            self._meter.close()
        self._meter = self._new_meter("training", self.config.total_steps * size, "images")
        self._meter.advance_to(step * size)

    def show_step(self, images: int) -> None:
        """Show how many images were seen."""
        if self._meter is not None:
            self._meter.advance_to(images)

    def record(self, step: int, images: int, result: StepResult) -> None:
        """Record the last step's metrics. Collective."""
        values = self._records.values(step, images, result) | self._plan
        eta = values["run/eta_seconds"]
        assert isinstance(eta, float)
        self._health.expect_end(eta)
        if self._ledger is not None:
            self._ledger.record_images(images)
            values |= self._ledger.values(self.own_time.spent)
        if self._first_record:
            self._first_record = False
            values |= self._startup.end(self.log if self.config.telemetry.progress != "off" else lambda line: None)
        self.world.require_peers()
        self.record_values(step, images, values)
        if self._meter is not None:
            kind = " at t = 1" if result.one_step else ""
            self._meter.advance_to(images, f"loss {values['loss/total']:.4f}{kind} (after {images:,} images)")
        if not values.get("transport/converged", 1.0) and not self._warned:
            self._warned = True
            short = f"stopped short of transport.tolerance (marginal error {values['transport/marginal_error']:.2g})"
            advice = "allow more iterations, or see docs/choosing-settings.md"
            self.log(Warned(f"step {step}: the coupling {short}; {advice}"))

    def record_missed(self, step: int, images: int, measured: Values) -> None:
        """Record the metrics of the last step, if a rank was lost between that step and its record."""
        if self.world.is_main and last_recorded_step(self.dir / "stats.jsonl", "loss/total") < step:
            self.record_step(step, images, measured)

    def record_step(self, step: int, images: int, measured: Values) -> None:
        """Record the metrics of a step, and nothing about the time since the last record."""
        at = schedules_at(self.config, images - self.config.train.batch_size).values()
        run = {"run/steps": step, "run/images": images, "run/world_size": self.world.world_size}
        self.record_values(step, images, {**measured, **at, **run})

    def record_values(self, step: int, images: int, values: Values) -> None:
        """Record values by tag of the catalogue."""
        self._telemetry.record(step, images, values)

    def show_picture(self, images: int, tag: str, picture: Tensor, *files: str) -> None:
        """Record a picture ``(3, h, w)`` of bytes, and write it to files in the run directory."""
        for name in files:
            self.write_file(self.dir / name, partial(write_png, picture))
        self._telemetry.picture(images, tag, picture)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Context of an evaluation, whose time belongs to the run, but to no step."""
        started = time.monotonic()
        try:
            with self._health.evaluating(), self._records.pace.paused():
                yield
        finally:
            if self._ledger is not None:
                self._ledger.exclude(time.monotonic() - started)

    def productive_seconds(self) -> float:
        """Time so far in steps whose result was kept, by this rank's clock."""
        return self._productive_before + self.own_time.spent

    def step_seconds(self) -> float:
        """Seconds from one step to the next, if known; else 0."""
        return self._records.pace.mean

    def manifest_facts(self) -> dict[str, Any]:
        """Facts for a checkpoint's manifest, on rank 0: this start, and time so far in steps whose result was kept."""
        ledger = self._ledger
        productive = {} if ledger is None else {PRODUCTIVE: ledger.productive_seconds(self.own_time.spent)}
        return {"start": self._start, **productive}

    def stopped(self, images: int) -> None:
        """Log that the run has stopped on request, with its state saved."""
        self._end = "told to stop"
        for line in stop_lines(images):
            self.log(line)

    def finished(self, step: int) -> None:
        """Close all output, then log a summary: what the run has made, and what to do next."""
        self._health.enter_phase("finished")
        self._end = "finished" if step == self.config.total_steps else "told to stop"
        seconds = time.monotonic() - self._started
        self.close()
        for line in last_lines(self.config, step, step - self._first_step, seconds, self.measured):
            self.log(line)

    def close(self) -> None:
        """Close the meter, the sinks, the ledger and the endpoint."""
        if self._meter is not None:
            self._meter.close()
        if self._ledger is not None:
            self._ledger.end(self._health.images, self._end)
            self._ledger = None
        with watch.paused():  # a sink of another package may upload
            self._telemetry.close(math.inf if self._end == "finished" else CLOSE_SECONDS)
        self._node.close()

    def _new_meter(self, title: str, total: int, unit: str) -> Meter:
        return Meter(title, total, unit, mode=self.config.telemetry.progress, enabled=self.world.is_main)

    def _node_sinks(self, step: int, images: int, manifest: Mapping[str, Any]) -> Sequence[Sink]:
        """Prometheus, if this node has an endpoint, with the values that are known before the first record."""
        assert self._ledger is not None
        began = time.time() - self._startup.total
        known = {
            **self._plan,
            **self._ledger.values(0.0),
            **{f"run/{name}": float(manifest.get(name, 0)) for name in COUNT_NAMES},
            "run/steps": step,
            "run/images": images,
            "run/checkpoint_images": images,
        }
        saved_at = max(manifest.get("saved_at", began), began)  # time before this start is no risk of loss
        return self._node.sinks(saved_at, known, build_labels(self.world.device) | {"run": str(self.dir)})
