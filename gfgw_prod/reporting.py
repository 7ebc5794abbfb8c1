"""What a run tells: lines on standard error, metric records, pictures, and where everything is at the end."""

from __future__ import annotations

import shlex
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from gfgw_prod import samples
from gfgw_prod.checkpoint.reading import Checkpoint
from gfgw_prod.commands import program
from gfgw_prod.config import Config
from gfgw_prod.data.sources import Table
from gfgw_prod.distributed.cells import Spread
from gfgw_prod.distributed.world import World
from gfgw_prod.generator.ema import Ema
from gfgw_prod.resilience.preemption import ToldToStopError
from gfgw_prod.resilience.watchdog import watch
from gfgw_prod.step import StepResult
from gfgw_prod.telemetry import Telemetry
from gfgw_prod.telemetry.health import Health
from gfgw_prod.telemetry.pace import Pace
from gfgw_prod.telemetry.sinks import Values
from gfgw_prod.telemetry.startup import LONG_SECONDS, Startup
from gfgw_prod.telemetry.stragglers import OwnTime, StragglerWatch, slowest
from gfgw_prod.transport.usage import Usage

if TYPE_CHECKING:
    from gfgw_prod.telemetry.endpoint import Endpoint

TOLD_EVERY_SECONDS = 10.0  # of work that takes long before the first step


class Reporter:
    """Speaks for a run, on rank 0. What it draws or averages over cells is collective: all ranks call alike.

    Attributes:
        hosts: where each rank runs.
    """

    def __init__(self, config: Config, world: World, startup: Startup):
        self.config, self.world, self.dir = config, world, config.run.dir
        self.health = Health(config.resilience.hang_seconds, watch.silence)
        self._endpoint: Endpoint | None = None
        self._startup: Startup | None = startup  # until the first record
        self._telemetry = Telemetry([])
        self._told, self._warned = time.monotonic(), False
        self.own_time = OwnTime(lambda: world.traffic.seconds)
        self.hosts = world.collect(socket.gethostname())
        self._stragglers = StragglerWatch(self.hosts, config.resilience.straggler_ratio)

    def say(self, line: str) -> None:
        """One line, from rank 0."""
        if self.world.is_main:
            print(line, file=sys.stderr, flush=True)

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
        """Says now and then how far the bank is; with a large network it takes minutes."""
        self.health.phase(f"starting: encoding the bank, {rows:,} of {total:,} rows")
        if time.monotonic() - self._told >= TOLD_EVERY_SECONDS:
            self._told = time.monotonic()
            self.say(f"bank: {rows:,} of {total:,} rows of rank 0 encoded")

    def open(self, step: int, resumed: Checkpoint | None) -> None:
        """Opens the sinks of a run that goes on after ``step`` steps."""
        batch_size = self.config.train.batch_size
        self.health.position(step, step * batch_size)
        if self.world.is_main:
            self._telemetry = Telemetry.open(
                self.config.telemetry,
                self.dir,
                None if self._endpoint is None else self._endpoint.registry,
                step=step,
                images=step * batch_size,
                total_images=self.config.total_steps * batch_size,
                saved_at=resumed.manifest["saved_at"] if resumed is not None else time.time(),
            )

    def begin(self, step: int, spread: Spread) -> None:
        """From here on time counts as training."""
        self._spread, self._first_step, self._started = spread, step, time.monotonic()
        self._pace = Pace(step, self.config.train.batch_size, self.world.world_size, spread.idle_share)

    def record(self, step: int, images: int, result: StepResult, usage: Usage, more: Values) -> None:
        """Records what the last step found, and more values by tag of the catalogue. Collective."""
        values = result.values(self.world, self._spread) | self._pace.values(step)
        values["transport/bank_share"] = usage.share(images)
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

    def picture(self, images: int, ema: Ema, table: Table) -> None:
        """Draws the grid of samples and keeps it as a file. Collective."""
        side = self.config.telemetry.sample_grid
        grid = samples.grid_of(self._draw(side * side, "grid", ema, table), side)
        if self.world.is_main:
            directory = self.dir / "samples"
            directory.mkdir(exist_ok=True)
            samples.write_png(grid, directory / f"kimg-{images / 1000:09.1f}.png")
            samples.write_png(grid, self.dir / "samples.png")
        self._telemetry.picture(images, "samples", grid)

    def finished(self, step: int, ema: Ema, table: Table, *, told_to_stop: Callable[[], bool]) -> None:
        """Closes the telemetry and says what there is now and what to do next. Collective.

        Args:
            told_to_stop: leave out how far samples are from the data, which ``telemetry.frechet_samples`` asks for.
        """
        self.health.phase("finished")
        seconds = time.monotonic() - self._started
        figures = self._figures(ema, table, told_to_stop)
        self.close()
        batch_size, total_kimg = self.config.train.batch_size, self.config.train.total_kimg
        place, more = shlex.quote(str(self.dir)), shlex.quote(str(self.dir / "more-samples"))
        made = (step - self._first_step) * batch_size
        done = f"trained {made / 1000:.1f} kimg in {seconds:.0f} s" if made else "nothing to do: already finished"
        self.say(f"{done}; {step * batch_size / 1000:.1f} kimg in all, {step:,} steps{figures}")
        self.say(f"picture:    {self.dir / 'samples.png'}")
        self.say(f"curves:     {program('tensorboard')} --logdir {place}")
        self.say(f"samples:    {program('gfgw')} sample {place} --num 64 --grid --out {more}")
        self.say(f"go on:      the same command with --train.total-kimg {2 * total_kimg:g}")

    def close(self) -> None:
        """Flushes and closes all sinks, and the endpoint."""
        self._telemetry.close()
        if self._endpoint is not None:
            self._endpoint.close()
            self._endpoint = None

    def _of_ranks(self) -> Values:
        """How the ranks compare since the last record; names those that are slow. Collective."""
        mean, steps = self.own_time.take()
        if self.world.device.type != "cpu":
            return {}
        seconds = self.world.gather(torch.tensor(mean, dtype=torch.float64)).tolist()
        for line in self._stragglers.judge(seconds, steps, time.monotonic()):
            self.say(line)
        rank, ratio = slowest(seconds)
        return {"speed/rank_step_seconds": seconds, "speed/slowest_rank": rank, "speed/slowest_ratio": ratio}

    def _of_the_start(self) -> dict[str, float]:
        """What it took to come here, once; a line about it if it was long."""
        startup, self._startup = self._startup, None
        if startup is None:
            return {}
        startup.done("first_step")
        if startup.total > LONG_SECONDS and self.config.telemetry.progress != "off":
            self.say(str(startup))
        return startup.values()

    def _draw(
        self, count: int, stream: str, ema: Ema, table: Table, before_batch: Callable[[], None] = watch.progress
    ) -> torch.Tensor:
        """Samples of the averaged weights. Collective."""
        with ema.applied() as generator:
            images, _ = samples.draw_samples(
                generator,
                table.image_shape,
                table.num_classes,
                count=count,
                seed=self.config.seed,
                stream=stream,
                device=self.world.device,
                before_batch=before_batch,
            )
        return images

    def _figures(self, ema: Ema, table: Table, told_to_stop: Callable[[], bool]) -> str:
        def go_on() -> None:
            watch.progress("measuring samples")
            if told_to_stop():
                raise ToldToStopError

        count = self.config.telemetry.frechet_samples
        if not count:
            return ""
        from gfgw_prod.evaluation.frechet import frechet_distance

        try:
            drawn = self._draw(count, "frechet", ema, table, go_on)
        except ToldToStopError:
            return "; told to stop before samples were measured"
        with watch.paused():
            data = table.rows(torch.arange(len(table)))
            distance = frechet_distance(*(images.flatten(1).double().numpy() for images in (drawn, data)))
        return f", raw-pixel Fréchet distance {distance:.3f} ({count:,} samples)"
