"""One optimisation step: generate, match, regress; then update.

``compute`` changes nothing that outlives the step, so a step can be computed again: the same bits, if the hardware is
sound. ``apply`` makes it count.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gfgw_prod.data.sources import Table
from gfgw_prod.data.stream import CellRows, KeyedOrder, flip_some
from gfgw_prod.distributed.cells import Cell, Turn
from gfgw_prod.distributed.checksums import checksum
from gfgw_prod.distributed.parallel import Parallel
from gfgw_prod.distributed.reduction import gradient_norm, gradients, scale_gradients
from gfgw_prod.distributed.world import World
from gfgw_prod.generator import interpolate
from gfgw_prod.generator.ema import Ema
from gfgw_prod.losses.energy import BatchFeatures
from gfgw_prod.settings import schedule
from gfgw_prod.settings.config import Config
from gfgw_prod.telemetry.phases import StepClock
from gfgw_prod.training.consistency import nearer_times
from gfgw_prod.training.feed import Feed
from gfgw_prod.training.objective import Objective
from gfgw_prod.training.optimizer import AdamW
from gfgw_prod.training.precision import Precision
from gfgw_prod.training.step_data import CellInputs, Samples, StepResult
from gfgw_prod.training.times import draw_times, is_one_step
from gfgw_prod.transport.matching import Match, Matcher


@dataclass
class TrainingStep:
    """Everything a step needs."""

    config: Config
    world: World
    table: Table
    feed: Feed
    parallel: Parallel
    objective: Objective
    matcher: Matcher
    optimizer: AdamW
    ema: Ema
    precision: Precision

    def __post_init__(self) -> None:
        self._order = KeyedOrder(self.config.seed, len(self.table))
        self.clock = StepClock(self.world.device)

    @property
    def turns(self) -> int:
        """Cells that this rank runs in a step."""
        return self.parallel.assignment.turns_per_rank

    def compute(self, step: int, rows: Sequence[CellRows]) -> StepResult:
        """Computes a step from what the stream brings to its turns. Collective."""
        config, world = self.config, self.world
        self.clock.begin()
        images_seen = step * config.train.batch_size
        turns = self.parallel.assignment.turns_of(config.seed, step, size=config.train.cell_size, rank=world.rank)
        self.parallel.module.zero_grad(set_to_none=True)  # of a computation that did not count
        inputs = [
            CellInputs.draw(turn.cell, found, self.table, world.device) for turn, found in zip(turns, rows, strict=True)
        ]
        self.clock.lap("inputs")
        one_step = is_one_step(config.train.one_step_share, step)
        kept = config.train.kept_passes if one_step and not self._approaches_boundary else 0
        if self._consistent(one_step) and config.consistency.coupled_by == "noise":
            made = [Samples(self._features_of_noise(cell)) for cell in inputs]
        else:
            made = [
                self._generate(turn, cell, one_step=one_step, keep=number < kept)
                for number, (turn, cell) in enumerate(zip(turns, inputs, strict=True))
            ]
        generated = torch.stack([samples.features for samples in made])
        self.clock.lap("generate")
        started, sent = time.perf_counter(), world.traffic.bytes
        match, finite = self._match(step, images_seen, generated)
        seconds, sent = time.perf_counter() - started, world.traffic.bytes - sent
        targets = iter([cell.images for cell in inputs])
        if config.transport.target != "independent":
            targets = self.feed.targets(match, [turn.cell.slots for turn in turns])
        self.clock.lap("match")
        made.reverse()  # each is let go as its turn comes
        terms = [
            self._regress(turn, cell, made.pop(), match, target, images_seen, one_step=one_step)
            for turn, cell, target in zip(turns, inputs, targets, strict=True)
        ]
        self.clock.lap("regress")
        own_gradients = self.parallel.finish_step()
        checksums = [
            torch.stack([checksum([features]), checksum([found]), gradient])
            for features, found, gradient in zip(generated, terms, own_gradients, strict=True)
        ]
        self.precision.unscale(self._parameters())
        norm = gradient_norm(self._parameters(), world)
        self.clock.lap("reduce")
        return StepResult(
            step,
            images_seen,
            torch.stack(terms),
            torch.tensor([turn.weight for turn in turns], device=world.device),
            torch.stack([cell.ids for cell in inputs]),
            norm,
            finite,
            match,
            seconds,
            sent,
            torch.stack(checksums),
            {
                "optimizer/learning_rate": self._learning_rate(images_seen),
                "transport/epsilon": self.matcher.epsilon(images_seen),
                "transport/structure_weight": self.matcher.structure_weight(images_seen),
            },
        )

    def apply(self, result: StepResult) -> None:
        """Clips, steps AdamW, averages the weights, and has the matcher learn from the step."""
        self.clock.lap("check")
        e, batch_size, images_seen = self.config.ema, self.config.train.batch_size, result.images_seen
        scale_gradients(
            self._parameters(), (self.config.optimizer.clip_norm / (result.gradient_norm + 1e-6)).clamp(max=1.0)
        )
        self.optimizer.step(self._learning_rate(images_seen))
        self.ema.update(schedule.ema_decay(e.halflife_kimg, e.rampup_ratio, batch_size, images_seen + batch_size))
        self.precision.accept()
        self.matcher.accept(result.match, images_seen + batch_size)
        self.clock.lap("update")

    def gradients(self) -> list[Tensor]:
        """The sum over all cells of the last computation."""
        return gradients(self._parameters())

    def skip(self) -> None:
        """Lets a step pass that must not count: the schedules go on, the weights stay."""
        self.parallel.module.zero_grad(set_to_none=True)
        self.optimizer.steps += 1

    def loosen(self) -> bool:
        """Lets a step pass whose gradient may have been too large for the loss scale alone; returns whether it may."""
        loosened = self.precision.loosen()
        if loosened:
            self.skip()
        return loosened

    def _generate(self, turn: Turn, cell: CellInputs, *, one_step: bool, keep: bool) -> Samples:
        """One-step samples of a cell's noise.

        Where the cell is trained at ``t = 1``, this is the very pass that is trained, dropout and all. If it is kept,
        its graph waits for the targets; if not, it is made again when they are known, with the same bits.
        """
        self.parallel.module.train(one_step)
        with torch.set_grad_enabled(keep), turn.cell.dropout(self.world.device):
            images = self._pass(cell.noise, cell.noise.new_ones(len(cell.noise)), cell.labels)
            features = self.objective.features(images)
        return Samples(features.detach(), images, features) if keep else Samples(features)

    @torch.no_grad()
    def _features_of_noise(self, cell: CellInputs) -> Tensor:
        """Of a cell's noise ``(b, d)``, as if it were images."""
        return self.objective.features(cell.noise)

    def _consistent(self, one_step: bool) -> bool:
        """Whether a step regresses on what the generator makes nearer to the image."""
        return self.config.consistency.stages > 0 and not one_step

    def _pass(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The generator's images ``(b, c, h, w)`` of noisy images and times ``(b,)``."""
        with self.precision.autocast():
            images: Tensor = self.parallel.module(x_t, t, labels)
        return images

    def _passes(self, target: Tensor, cell: CellInputs, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images of the target noised to times ``(b,)``, and, where the boundary is only approached, at time 0.

        One pass makes both: FSDP reduces gradients once for each.
        """
        x_t = interpolate(target, cell.noise, t)
        if not self._approaches_boundary:
            return self._pass(x_t, t, cell.labels), None
        both = torch.cat([x_t, target]), torch.cat([t, torch.zeros_like(t)]), cell.labels.repeat(2)
        images, at_zero = self._pass(*both).chunk(2)
        return images, at_zero

    @torch.no_grad()
    def _match(self, step: int, images_seen: int, features: Tensor) -> tuple[Match, Tensor]:
        """Couples the features ``(turns, b, d)`` of all ranks' cells, in the order of cells, with the bank.

        Returns:
            The match, and whether all features, those that were not count as zero, and all it teaches were finite.
        """
        config = self.config
        gathered = self.world.all_gather(features)  # (W, turns, b, d)
        batch = self.parallel.assignment.in_cell_order(gathered).flatten(0, 1)
        finite, batch = batch.isfinite().all(), batch.nan_to_num(0.0, 0.0, 0.0)
        cells = [Cell(config.seed, step, index, config.train.cell_size) for index in range(config.cells)]
        uniforms = torch.cat([cell.uniform("target") for cell in cells])
        rows = self._order.rows(images_seen, config.train.batch_size)
        labels = self.table.labels[rows]
        noise = None
        if config.transport.noise_weight:  # every rank draws what all ranks' cells drew
            noise = torch.cat([cell.normal("noise", self.table.image_shape, self.world.device) for cell in cells])
        match = self.matcher.match(batch, rows, labels, uniforms, step=step, images=images_seen, noise=noise)
        for tensor in match.learned:
            finite = finite & tensor.isfinite().all()
        return match, finite

    def _regress(
        self, turn: Turn, cell: CellInputs, made: Samples, match: Match, target: Tensor, seen: int, *, one_step: bool
    ) -> Tensor:
        """Accumulates the gradient of one cell; returns its loss terms, ``(len(Losses._fields),)``."""
        config = self.config
        target = target.to(self.world.device, non_blocking=True)
        if config.data.flip:
            target = flip_some(target, cell.flips)
        matched = match.target_features(turn.cell.slots)
        self.parallel.module.train()
        t = torch.ones(len(target)) if one_step else draw_times(config.time, turn.cell, seen)
        compared = self._nearer(turn, cell, target, t, seen) if self._consistent(one_step) else None
        with self.parallel.turn(turn), turn.cell.dropout(self.world.device):
            predicted, features, at_zero = made.images, made.graded_features, None
            if predicted is None:
                predicted, at_zero = self._passes(target, cell, t.to(self.world.device, non_blocking=True))
            if compared is None:
                batch = (
                    BatchFeatures(match.generated, match.features, turn.cell.slots, match.labels) if one_step else None
                )
                losses = self.objective(predicted, target, matched, features=features, at_zero=at_zero, batch=batch)
            else:
                huber = config.consistency.huber
                losses = self.objective.between_times(predicted, *compared, target, huber=huber, at_zero=at_zero)
            (losses.total * (turn.weight / config.cells * self.precision.scale)).backward()
        return torch.stack(losses).detach()

    @torch.no_grad()
    def _nearer(self, turn: Turn, cell: CellInputs, target: Tensor, t: Tensor, seen: int) -> tuple[Tensor, Tensor]:
        """Images nearer on the line from noise to target, ``(b, c, h, w)``, and by how much noise, ``(b,)``.

        Where nearer is the end of the line, it is the target. Dropout is that of the pass that is trained.
        """
        r, apart = (
            each.to(self.world.device, non_blocking=True) for each in nearer_times(self.config.consistency, t, seen)
        )
        with turn.cell.dropout(self.world.device):
            images = self._pass(interpolate(target, cell.noise, r), r, cell.labels)
        return torch.where((r > 0)[:, None, None, None], images, target), apart

    @property
    def _approaches_boundary(self) -> bool:
        return not self.config.generator.exact_boundary and self.config.loss.boundary > 0

    def _parameters(self) -> list[Tensor]:
        return [p for p in self.parallel.module.parameters() if p.requires_grad]

    def _learning_rate(self, images_seen: int) -> float:
        o = self.config.optimizer
        return schedule.learning_rate(o.lr, o.final_lr_ratio, o.warmup_kimg, o.decay_kimg, images_seen)
