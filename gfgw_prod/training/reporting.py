"""What a run tells: lines on standard error, metric records, pictures, and where everything is at the end."""

from __future__ import annotations

import shlex
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gfgw_prod.checkpoint.reading import Checkpoint
from gfgw_prod.data.sources import Table
from gfgw_prod.distributed.cells import Spread
from gfgw_prod.distributed.world import World
from gfgw_prod.generator.ema import Ema
from gfgw_prod.process import restart_causes
from gfgw_prod.process.exit_codes import reason_of
from gfgw_prod.process.meter import Meter
from gfgw_prod.process.stacks import tell_of_hangs
from gfgw_prod.process.standard_streams import log
from gfgw_prod.process.watchdog import watch
from gfgw_prod.resilience.bad_numbers import COUNT_NAMES
from gfgw_prod.resilience.ledger import End, Ledger
from gfgw_prod.sampling import pictures
from gfgw_prod.settings import reading, schedule
from gfgw_prod.settings.config import Config
from gfgw_prod.telemetry import Telemetry, memory
from gfgw_prod.telemetry.build import build_of
from gfgw_prod.telemetry.exposition import Live
from gfgw_prod.telemetry.health import Health
from gfgw_prod.telemetry.pace import Pace
from gfgw_prod.telemetry.sinks import Progress, Values, last_step_on_record
from gfgw_prod.telemetry.startup import LONG_SECONDS, Startup
from gfgw_prod.telemetry.stragglers import OwnTime, StragglerWatch, slowest
from gfgw_prod.training.step_data import StepResult
from gfgw_prod.transport.usage import Usage

if TYPE_CHECKING:
    from gfgw_prod.telemetry.endpoint import Endpoint

PRODUCTIVE = "productive_seconds"  # a fact of a checkpoint's manifest


class Reporter:
    """Speaks for a run, on rank 0, but for what is a rank's own.

    What it draws or averages over cells is collective: all ranks call alike.

    Attributes:
        hosts: where each rank runs.
        measured: what the last evaluation found, in words.
    """

    def __init__(self, config: Config, world: World, startup: Startup):
        self.config, self.world, self.dir = config, world, config.run.dir
        self.health = Health(config.resilience.hang_seconds, watch.silence)
        self._endpoint: Endpoint | None = None
        self._startup: Startup | None = startup  # until the first record
        self._telemetry = Telemetry([])
        self._bank: Meter | None = None  # while the bank is encoded
        self._warned = False
        self.own_time = OwnTime(lambda: world.traffic.seconds)
        self.measured = ""
        told = world.all_gather_object((socket.gethostname(), restart_causes.take_from_launcher()))
        self.hosts = [host for host, _ in told]
        self._cause = restart_causes.first_of(cause for _, cause in told)
        self._expected_ranks = max(restart_causes.expected_ranks(), world.world_size)
        self._ledger: Ledger | None = None  # on rank 0
        self._end: End = "error"  # until it is known better
        self._stragglers = StragglerWatch(self.hosts, config.resilience.straggler_ratio)

    def say(self, line: str) -> None:
        """One line, from rank 0."""
        if self.world.is_main:
            log(line)

    def say_of_own(self, line: str) -> None:
        """One line, from any rank, of what is its own."""
        log(line if self.world.world_size == 1 else f"rank {self.world.rank}: {line}")

    def write(self, file: Path, write: Callable[[Path], None]) -> None:
        """Writes a file for people, from rank 0. A run goes on without it."""
        if self.world.is_main:
            try:
                file.parent.mkdir(exist_ok=True)
                write(file)
            except OSError as error:
                self.say(f"{file} could not be written ({reason_of(error)}); the run goes on")

    def listen(self) -> None:
        """Opens the endpoint of this node, on its first rank, long before there is anything to record.

        Raises:
            UserError: if the port cannot be bound.
        """
        telemetry = self.config.telemetry
        if telemetry.prometheus_port and self.world.is_first_on_node:
            from gfgw_prod.telemetry.endpoint import Endpoint

            self._endpoint = Endpoint(telemetry.prometheus_address, telemetry.prometheus_port, self.health)

    def encoded(self, rows: int, total: int) -> None:
        """Says how far this rank's part of the bank is; with a large network it takes minutes."""
        self.health.phase(f"starting: encoding the bank, {rows:,} of {total:,} rows")
        if self._bank is None:
            mode, speaks = self.config.telemetry.progress, self.world.is_main
            self._bank = Meter("encoding the bank", total, "rows of rank 0", mode=mode, enabled=speaks)
        self._bank.advance_to(rows)
        if rows == total:
            self._bank.close()

    def open(self, step: int, resumed: Checkpoint | None) -> None:
        """Opens the sinks of a run that goes on after ``step`` steps."""
        batch_size = self.config.train.batch_size
        images = step * batch_size
        self.health.position(step, images)
        if self._endpoint is not None:
            asks = {"run/started": lambda: 1.0, "run/evaluating": lambda: float(self.health.is_evaluating)}
            Live(self._endpoint.registry, asks)
        if self.world.is_main:
            manifest = {} if resumed is None else resumed.manifest
            starting_seconds = 0.0 if self._startup is None else self._startup.total
            began = time.time() - starting_seconds
            self._ledger = Ledger(self.dir)
            self._ledger.begin(
                images,
                seen=last_step_on_record(self.dir / "stats.jsonl") * batch_size,
                starting_seconds=starting_seconds,
                cause=self._cause,
                productive_seconds=float(manifest.get(PRODUCTIVE, 0.0)),
            )
            self._telemetry = Telemetry.open(
                self.dir,
                None if self._endpoint is None else self._endpoint.registry,
                step=step,
                images=images,
                saved_at=max(manifest.get("saved_at", began), began),  # a wait in a queue loses nothing
                known=self._fixed() | self._ledger.values(0.0) | self._behind(step, manifest),
                build=build_of(self.world.device),
                resolved=reading.as_yaml(self.config),
                report=self.say,
            )

    def begin(self, step: int, spread: Spread) -> None:
        """From here on time counts as training."""
        self._spread, self._first_step, self._started = spread, step, time.monotonic()
        if self.world.is_main:
            progress, size = self.config.telemetry.progress, self.config.train.batch_size
            self._telemetry.add(Progress(progress, step * size, self.config.total_steps * size))
        self._pace = Pace(step, self.config.train.batch_size, self.world.world_size, spread.idle_share)

    def record(self, step: int, images: int, result: StepResult, usage: Usage, more: Values) -> None:
        """Records what the last step found, and more values by tag of the catalogue. Collective."""
        values = result.values(self.world, self._spread) | self._pace.values(step) | self._fixed()
        values["transport/bank_share"] = usage.share(images)
        values |= schedule.schedules_at(self.config, result.images_seen).values()
        if self._ledger is not None:
            self._ledger.note(images)
            values |= self._ledger.values(self.own_time.spent)
        self.values(step, images, {**values, **more, **self._of_ranks(), **self._of_the_start()})
        if not values.get("transport/converged", 1.0) and not self._warned:
            self._warned = True
            self.say(
                f"step {step}: the coupling stopped short of transport.tolerance (marginal error "
                f"{values['transport/marginal_error']:.2g}); allow more iterations, or see transport/converged"
            )

    def values(self, step: int, images: int, values: Values) -> None:
        """Records values by tag of the catalogue."""
        self._telemetry.record(step, images, values)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Around an evaluation: a part of the run, but of no step."""
        started = time.monotonic()
        try:
            with self.health.evaluating(), self._pace.standing():
                yield
        finally:
            if self._ledger is not None:
                self._ledger.exclude(time.monotonic() - started)

    def picture(self, images: int, ema: Ema, table: Table) -> None:
        """Draws the grid of samples and keeps it as a file. Collective."""
        side = self.config.telemetry.sample_grid
        with ema.applied() as generator:
            drawn, _ = pictures.draw_samples(
                generator,
                table.image_shape,
                table.num_classes,
                count=side * side,
                seed=self.config.seed,
                stream="grid",
                device=self.world.device,
                before_cell=watch.progress,
            )
        grid = pictures.grid_of(drawn, side)
        for name in (f"samples/kimg-{images / 1000:09.1f}.png", "samples.png"):
            self.write(self.dir / name, partial(pictures.write_png, grid))
        self._telemetry.picture(images, "samples", grid)

    def stopped(self, images: int) -> None:
        """Says that the run was told to stop, and has saved its state."""
        self._end = "told to stop"
        self.say(f"told to stop at {images / 1000:.1f} kimg; the same command goes on from there")

    def tell_of_hangs(self) -> None:
        """Says which ranks of the last start left their stacks: that is why this one began."""
        if self.world.is_main and tell_of_hangs(self.dir, self.say):
            self._cause = "hang"

    def finished(self, step: int) -> None:
        """Closes the telemetry and says what there is now and what to do next."""
        self.health.phase("finished")
        self._end = "finished"
        seconds = time.monotonic() - self._started
        self.close()
        batch_size, total_kimg = self.config.train.batch_size, self.config.train.total_kimg
        place, more = shlex.quote(str(self.dir)), shlex.quote(str(self.dir / "more-samples"))
        made = (step - self._first_step) * batch_size
        figures = f"; {self.measured}" if self.measured else ""
        done = f"trained {made / 1000:.1f} kimg in {seconds:.0f} s" if made else "nothing to do: already finished"
        self.say(f"{done}; {step * batch_size / 1000:.1f} kimg in all, {step:,} steps{figures}")
        self.say(f"picture:    {self.dir / 'samples.png'}")
        self.say(f"curves:     {program('tensorboard')} --logdir {place}")
        self.say(f"samples:    {program('gfgw')} sample {place} --num 64 --grid --out {more}")
        self.say(f"go on:      the same command with --train.total-kimg {2 * total_kimg:g}")

    def productive(self) -> dict[str, float]:
        """For a checkpoint's manifest: time in steps that count, up to now; on rank 0."""
        ledger = self._ledger
        return {} if ledger is None else {PRODUCTIVE: ledger.productive_seconds(self.own_time.spent)}

    def close(self) -> None:
        """Flushes and closes all sinks, and the endpoint."""
        if self._bank is not None:
            self._bank.close()
        self._telemetry.close()
        if self._ledger is not None:
            self._ledger.end(self.health.images, self._end)
            self._ledger = None
        if self._endpoint is not None:
            self._endpoint.close()
            self._endpoint = None

    def _behind(self, step: int, manifest: Mapping[str, Any]) -> dict[str, float]:
        """Where a start begins."""
        images = step * self.config.train.batch_size
        counts = {f"run/{fact}": float(manifest.get(fact, 0)) for fact in COUNT_NAMES}
        return {"run/steps": step, "run/images": images, "run/checkpoint_images": images, **counts}

    def _fixed(self) -> dict[str, float]:
        """What a dashboard sets the rest against."""
        return {
            "run/planned_images": self.config.total_steps * self.config.train.batch_size,
            "run/expected_ranks": self._expected_ranks,
            "run/checkpoint_interval_images": self.config.checkpoint.every_kimg * 1000,
        }

    def _of_ranks(self) -> Values:
        """Memory of the ranks, and how they compare since the last record; names those that are slow. Collective."""
        mean, steps = self.own_time.take()
        device = self.world.device
        mine = torch.tensor([mean, *memory.of_this_rank(device)], dtype=torch.float64, device=device)
        seconds, *found = self.world.all_gather(mine).T.tolist()
        by_tag: dict[str, Sequence[float]] = dict(zip(memory.TAGS, found, strict=True))
        if device.type != "cpu":
            return by_tag
        for tag in memory.TAGS[memory.ON_HOST :]:
            del by_tag[tag]
        for line in self._stragglers.judge(seconds, steps, time.monotonic()):
            self.say(line)
        rank, ratio = slowest(seconds)
        return {
            **by_tag,
            "speed/rank_step_seconds": seconds,
            "speed/slowest_rank": rank,
            "speed/slowest_ratio": ratio,
        }

    def _of_the_start(self) -> dict[str, float]:
        """What it took to come here, once; a line about it if it was long."""
        startup, self._startup = self._startup, None
        if startup is None:
            return {}
        startup.done("first_step")
        if startup.total > LONG_SECONDS and self.config.telemetry.progress != "off":
            self.say(str(startup))
        return startup.values()


def program(name: str) -> str:
    """How to call a program of this environment from here: its path, unless it is on the search path anyway."""
    beside = Path(sys.executable).with_name(name)
    if shutil.which(name) == str(beside) or not beside.exists():
        return name
    here = Path.cwd()
    return str(beside.relative_to(here) if beside.is_relative_to(here) else beside)
