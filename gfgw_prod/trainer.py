"""A run, top to bottom: build, resume, loop, finish."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

from gfgw_prod import samples, settings_io
from gfgw_prod.checkpoint.reading import Checkpoint, newest_good, set_aside
from gfgw_prod.checkpoint.run_directory import prepare_directory, storages_of
from gfgw_prod.checkpoint.saving import Saver
from gfgw_prod.commands import program
from gfgw_prod.config import Config
from gfgw_prod.data.sources import load_table
from gfgw_prod.data.stream import CellRows, cell_stream
from gfgw_prod.distributed.parallel import parallelise
from gfgw_prod.distributed.world import World
from gfgw_prod.features.bank import FeatureBank
from gfgw_prod.features.extractors import build_extractor
from gfgw_prod.generator import UNetBlock, start_generator
from gfgw_prod.generator.ema import Ema
from gfgw_prod.losses.flow import check_scales
from gfgw_prod.losses.perceptual import build_perceptual
from gfgw_prod.optimizer import AdamW
from gfgw_prod.resilience import guards, preemption
from gfgw_prod.resilience.exit_codes import FINISHED, PREEMPTED, UserError
from gfgw_prod.resilience.state import training_state
from gfgw_prod.step import StepReport, TrainingStep
from gfgw_prod.telemetry import Telemetry
from gfgw_prod.telemetry.pace import Pace
from gfgw_prod.transport.matching import Matcher


def train(config: Config) -> int:
    """Runs or resumes the run of ``config.run.dir``; returns the exit code.

    Raises:
        UserError: for settings, data, weights, ports or checkpoints that cannot work.
    """
    world = World.start(config.run.device, config.run.threads, config.distributed.timeout_seconds)
    try:
        run = Run(config, world)
        try:
            run.resume()
            if finished := run.loop():
                run.finish()
        except BaseException:
            run.saver.give_up()
            raise
        finally:
            run.close()
    except UserError:
        world.stop()
        raise
    world.stop()
    return FINISHED if finished else PREEMPTED


class Run:
    """One process's part of a run."""

    def __init__(self, config: Config, world: World):
        self.config, self.world, self.dir = config, world, config.run.dir
        self.step = self.first_step = 0
        self._told, self._warned = time.monotonic(), False
        if world.world_size > config.cells:
            raise UserError(
                f"{world.world_size} ranks share {config.cells} cells; lower train.cell_size or run fewer ranks"
            )
        self.telemetry = Telemetry([])
        self.lock = world.together(lambda: prepare_directory(self.dir, self._say) if world.is_main else None)
        self.storages = world.together(lambda: storages_of(config.checkpoint, self.dir, make=world.is_main))

        # Rank 0 may have to fetch an archive; the others then find it.
        fetched = world.together(lambda: load_table(config.data) if world.is_main else None)
        self.table = world.together(lambda: load_table(config.data) if fetched is None else fetched)
        self.extractor = world.together(lambda: build_extractor(config.features, self.table.image_shape)).to(
            world.device
        )
        self.perceptual = world.together(self._build_perceptual)
        generator = world.together(self._build_generator).to(world.device)

        example = (
            torch.zeros(1, *self.table.image_shape, device=world.device),
            torch.ones(1, device=world.device),
            torch.zeros(1, dtype=torch.long, device=world.device),
        )
        d = config.distributed
        self.parallel = parallelise(generator, world, config.cells, d.strategy, d.reduction, UNetBlock, example)
        o = config.optimizer
        self.optimizer = AdamW(generator, betas=o.betas, weight_decay=o.weight_decay)
        self.ema = Ema(generator)
        self.bank = FeatureBank(len(self.table), self.extractor.dim, world)
        self.matcher = Matcher(
            config.transport, self.bank, self.table, seed=config.seed, conditional=config.generator.conditional
        )
        parts = (self.table, self.parallel, self.extractor, self.perceptual, self.matcher, self.optimizer, self.ema)
        self.training_step = TrainingStep(config, world, *parts)
        # Before a checkpoint is chosen: what an earlier process still commits must be there to be chosen.
        self.saver = Saver(config.checkpoint, self.storages, world, self._say)
        self.stop = preemption.StopRequest(world, config.distributed.timeout_seconds)

    @property
    def images(self) -> int:
        """Images seen."""
        return self.step * self.config.train.batch_size

    def resume(self) -> None:
        """Takes up the newest good checkpoint of the run directory, or encodes the bank for a new run."""
        found = newest_good(self.storages, self.world, self._say)
        self.damaged = len(set_aside(self.storages)) if self.world.is_main else 0
        if found is not None:
            self.step = self.first_step = self.optimizer.steps = found.step
        self.facts = guards.facts_of(self.config, self.table, self._frozen(), self.world.device)
        by_rank = self.world.collect(self.facts)
        for change in self.world.together(lambda: self._accepted_changes(found, by_rank)):
            self._say(f"run.allow_changes: going on with {change}")
        self.telemetry = self.world.together(lambda: self._open_telemetry(found))
        if found is not None:
            found.load(self._state(), self.world)
            self.saver.resumed(found)
            self._say(f"resumed {self.dir} at {self.images / 1000:.1f} kimg from {found.name}")
        else:
            block_rows = self.config.features.block_rows
            self.bank.encode(self.table, self.extractor, block_rows, on_block=self._encoded)
        self.saver.warm(self._state())
        if self.world.is_main:
            settings_io.write_yaml(self.config, self.dir / "config.yaml")

    def stream(self, last_step: int) -> Iterator[CellRows]:
        """This rank's cells from the present step to the last, exclusive."""
        return cell_stream(
            self.table,
            self.parallel.spread,
            seed=self.config.seed,
            first_step=self.step,
            last_step=last_step,
            size=self.config.train.cell_size,
            rank=self.world.rank,
        )

    def loop(self) -> bool:
        """Steps until ``train.total_kimg``, with records, pictures and checkpoints at their intervals.

        Returns:
            Whether it came that far: told to stop, it saves the state and returns ``False``.
        """
        config = self.config
        stream = self.stream(config.total_steps)
        started = time.monotonic()
        self._pace = Pace(self.step, config.train.batch_size, self.world.world_size, self.parallel.spread.idle_share)
        self.stop.listen()
        while self.step < config.total_steps:
            if self.stop.agreed():
                self._save()
                self.saver.finish()
                self._say(f"told to stop at {self.images / 1000:.1f} kimg; the same command goes on from there")
                return False
            report = self.training_step(self.step, stream)
            if not torch.isfinite(report.gradient_norm):
                raise FloatingPointError(f"the gradient norm of step {self.step} is {float(report.gradient_norm)}")
            self.step += 1
            last = self.step == config.total_steps
            if last or self.step == self.first_step + 1 or self._due(config.telemetry.log_every_kimg):
                self._record(report)
            if last or self._due(config.telemetry.samples_every_kimg):
                self._picture()
            if last or self._due(config.checkpoint.every_kimg):
                self._save()
            self._tell_of_saves()
        while self.saver.saved_step != self.step:  # a last save that fails is tried again; too often is an error
            self._save()
            self.saver.join()
        self.saver.finish()
        self.seconds = time.monotonic() - started
        return True

    def finish(self) -> None:
        """Closes the telemetry and says what there is now and what to do next."""
        figures = "" if self.stop.agreed() else self._figures()
        self.close()
        place, more = shlex.quote(str(self.dir)), shlex.quote(str(self.dir / "more-samples"))
        made = (self.step - self.first_step) * self.config.train.batch_size
        done = f"trained {made / 1000:.1f} kimg in {self.seconds:.0f} s" if made else "nothing to do: already finished"
        self._say(f"{done}; {self.images / 1000:.1f} kimg in all, {self.step:,} steps{figures}")
        self._say(f"picture:    {self.dir / 'samples.png'}")
        self._say(f"curves:     {program('tensorboard')} --logdir {place}")
        self._say(f"samples:    {program('gfgw')} sample {place} --num 64 --grid --out {more}")
        self._say(f"go on:      the same command with --train.total-kimg {2 * self.config.train.total_kimg:g}")

    def close(self) -> None:
        """Tells what is still to be told, also of saves that failed."""
        self._tell_of_saves()
        self.telemetry.close()

    def _encoded(self, rows: int) -> None:
        """Says now and then how far the bank is; with a large network it takes minutes."""
        if time.monotonic() - self._told >= 10:
            self._told = time.monotonic()
            self._say(f"bank: {rows:,} of {len(self.bank.local):,} rows of rank 0 encoded")

    def _due(self, interval_kimg: float) -> bool:
        """Whether the last step crossed a multiple of the interval: a function of the position alone."""
        interval, batch_size = interval_kimg * 1000, self.config.train.batch_size
        return self.images // interval != (self.images - batch_size) // interval

    def _record(self, report: StepReport) -> None:
        values = report.values(self.world, self.parallel.spread) | self._pace.values(self.step)
        values["transport/bank_share"] = self.matcher.usage.share(self.images)
        values["run/damaged_checkpoints"] = self.damaged
        self.telemetry.record(self.step, self.images, values)
        if not values.get("transport/converged", 1.0) and not self._warned:
            self._warned = True
            self._say(
                f"step {self.step}: the coupling stopped short of transport.tolerance (marginal error "
                f"{values['transport/marginal_error']:.2g}); allow more iterations, or see transport/converged"
            )

    def _draw(self, count: int, stream: str) -> torch.Tensor:
        """Samples of the averaged weights. Collective."""
        with self.ema.applied() as generator:
            images, _ = samples.draw_samples(
                generator,
                self.table.image_shape,
                self.table.num_classes,
                count=count,
                seed=self.config.seed,
                stream=stream,
                device=self.world.device,
            )
        return images

    def _picture(self) -> None:
        side = self.config.telemetry.sample_grid
        grid = samples.grid_of(self._draw(side * side, "grid"), side)
        if self.world.is_main:
            directory = self.dir / "samples"
            directory.mkdir(exist_ok=True)
            samples.write_png(grid, directory / f"kimg-{self.images / 1000:09.1f}.png")
            samples.write_png(grid, self.dir / "samples.png")
        self.telemetry.picture(self.images, "samples", grid)

    def _save(self) -> None:
        self.saver.save(self._state(), step=self.step, images=self.images, facts=self.facts)

    def _tell_of_saves(self) -> None:
        for step, images, values in self.saver.news():
            self.telemetry.record(step, images, values)

    def _frozen(self) -> list[torch.nn.Module]:
        return [net for net in (self.extractor, self.perceptual) if net is not None]

    def _state(self) -> dict[str, torch.Tensor]:
        return training_state(self.parallel.module, self.ema, self.optimizer, self.bank, self.matcher)

    def _figures(self) -> str:
        count = self.config.telemetry.frechet_samples
        if not count:
            return ""
        from gfgw_prod.evaluation.frechet import frechet_distance

        drawn, data = self._draw(count, "frechet"), self.table.rows(torch.arange(len(self.table)))
        distance = frechet_distance(*(images.flatten(1).double().numpy() for images in (drawn, data)))
        return f", raw-pixel Fréchet distance {distance:.3f} ({count:,} samples)"

    def _build_generator(self) -> torch.nn.Module:
        c, shape = self.config, self.table.image_shape
        check_scales(c.loss.flow_scales, shape)
        return start_generator(c.generator, shape, self.table.num_classes, c.seed, self._say)

    def _build_perceptual(self) -> torch.nn.Module | None:
        loss = self.config.loss
        return build_perceptual(loss.lpips_trunk).to(self.world.device) if loss.lpips else None

    def _accepted_changes(self, found: Checkpoint | None, by_rank: list[dict[str, Any]]) -> list[str]:
        changed = [] if found is None else guards.accept_changes(found.manifest, self.facts)
        return changed + guards.accept_mixture(by_rank, self.facts, self.step)

    def _open_telemetry(self, resumed: Checkpoint | None) -> Telemetry:
        if not self.world.is_main:
            return Telemetry([])
        return Telemetry.open(
            self.config.telemetry,
            self.dir,
            step=self.step,
            images=self.images,
            total_images=self.config.total_steps * self.config.train.batch_size,
            saved_at=resumed.manifest["saved_at"] if resumed is not None else time.time(),
        )

    def _say(self, line: str) -> None:
        if self.world.is_main:
            print(line, file=sys.stderr, flush=True)
