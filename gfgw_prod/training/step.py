"""One optimisation step: generate, match, regress, update.

``compute`` changes nothing that outlives the step, so a step can be computed again and gives the same bits.
``apply`` updates the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from gfgw_prod.data.sources import Table
from gfgw_prod.data.stream import CellRows, KeyedOrder, flip_some
from gfgw_prod.distributed.cells import Cell, Turn
from gfgw_prod.distributed.parallel import Parallel
from gfgw_prod.distributed.reduction import gradient_norm, gradients, scale_gradients
from gfgw_prod.distributed.transfers import to_device
from gfgw_prod.distributed.world import World
from gfgw_prod.generator import SIGMA_DATA, interpolate
from gfgw_prod.generator.ema import Ema
from gfgw_prod.losses.energy import BatchFeatures
from gfgw_prod.settings.config import Config
from gfgw_prod.settings.schedule import is_one_step, schedules_at
from gfgw_prod.telemetry.phases import StepClock, phase
from gfgw_prod.training.feed import Feed
from gfgw_prod.training.objective import Objective
from gfgw_prod.training.optimizer import AdamW
from gfgw_prod.training.precision import Precision
from gfgw_prod.training.step_data import CellInputs, Samples, StepInputs, StepResult
from gfgw_prod.training.times import draw_times, nearer_times
from gfgw_prod.transport.matching import Match, Matcher


@dataclass
class TrainingStep:
    """The parts that make a step. Every method but ``gradients`` is collective: all ranks call it alike."""

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
        self.clock = StepClock(self.world.device, lambda: self.world.traffic.bytes)

    # The step, phase by phase ----------------------------------------------------------------------------------------

    def compute(self, step: int, rows: Sequence[CellRows]) -> StepResult:
        """Compute losses and gradients of step ``step`` from the rows of this rank's turns, one ``CellRows`` each.

        The summed gradient is left in the parameters' ``.grad``.
        """
        self.clock.begin()
        inputs = self._draw(step, rows)
        networks = self.parallel.module, *self.objective.frozen
        with self.precision.cast_weights(*networks, by_block=self.parallel.replicated):
            samples = self._generate(inputs)
            features = torch.stack([each.features for each in samples])
            match, finite = self._match(inputs, features)
            losses = self._regress(inputs, samples, match)
        gradient_checksums, norm = self._reduce()
        return StepResult(
            step=step,
            images_seen=inputs.images_seen,
            one_step=inputs.one_step,
            features=features,
            match=match,
            finite=finite,
            losses=losses,
            counts=to_device(torch.tensor([turn.weight for turn in inputs.turns]), self.world.device),
            row_ids=torch.stack([cell.ids for cell in inputs.cells]),
            gradient_checksums=gradient_checksums,
            gradient_norm=norm,
        )

    @phase("inputs")
    def _draw(self, step: int, rows: Sequence[CellRows]) -> StepInputs:
        """Draw the noise and flips of this rank's cells."""
        config = self.config
        self.optimizer.drop_gradients()  # left by a computation that was not applied
        turns = self.parallel.assignment.turns_of(config.seed, step, size=config.train.cell_size, rank=self.world.rank)
        cells = [
            CellInputs.draw(turn.cell, found, self.table, self.world.device)
            for turn, found in zip(turns, rows, strict=True)
        ]
        one_step = is_one_step(config.train.one_step_share, step)
        return StepInputs(step, step * config.train.batch_size, one_step, turns, cells)

    @phase("generate")
    def _generate(self, inputs: StepInputs) -> list[Samples]:
        """Turn the noise of each cell into images in one step, and the images into features.

        A step with t < 1 may match by the noise itself; then no image is generated.
        """
        if self._is_consistency(inputs) and self.config.couples_by_noise:
            return [Samples(self._features_of_noise(cell)) for cell in inputs.cells]
        # At t = 1 the first ``kept`` passes keep their graph until the targets are known; the others run again then.
        kept = self.config.train.kept_passes if inputs.one_step else 0
        return [
            self._sample(turn, cell, one_step=inputs.one_step, keep=number < kept)
            for number, (turn, cell) in enumerate(zip(inputs.turns, inputs.cells, strict=True))
        ]

    @phase("match")
    @torch.no_grad()
    def _match(self, inputs: StepInputs, features: Tensor) -> tuple[Match, Tensor]:
        """Couple the generated features of all ranks, ``(turns, b, d)`` here, with the bank.

        Returns:
            The match, and whether all features and all that the matcher would learn are finite, a bool tensor ``()``.
        """
        config = self.config
        gathered = self.world.all_gather(features)  # (W, turns, b, d)
        batch = self.parallel.assignment.in_cell_order(gathered).flatten(0, 1)  # (B, d), in the order of cells
        # A step with bad numbers is skipped later; until then it must not stop the solver.
        finite, batch = batch.isfinite().all(), batch.nan_to_num(0.0, 0.0, 0.0)
        # Every rank draws what all ranks' cells drew.
        cells = [Cell(config.seed, inputs.step, index, config.train.cell_size) for index in range(config.cells)]
        ids = self._order.rows(inputs.images_seen, config.train.batch_size)
        schedules = schedules_at(config, inputs.images_seen)
        match = self.matcher.match(
            batch,
            ids,
            self.table.labels[ids],
            torch.cat([cell.uniform("target") for cell in cells]),
            step=inputs.step,
            epsilon=schedules.epsilon,
            structure_weight=schedules.structure_weight,
            noise=self._noise_directions(cells),
        )
        for tensor in match.dual_inputs:
            finite = finite & tensor.isfinite().all()
        return match, finite

    @phase("regress")
    def _regress(self, inputs: StepInputs, samples: list[Samples], match: Match) -> Tensor:
        """Accumulate the gradient of each cell; returns what ``_regress_cell`` does, for each turn."""
        targets = self._targets(inputs, match)
        samples.reverse()  # popped one by one, so that the graph of each is freed with its turn
        return torch.stack(
            [
                self._regress_cell(inputs, turn, cell, samples.pop(), match, target)
                for turn, cell, target in zip(inputs.turns, inputs.cells, targets, strict=True)
            ]
        )

    @phase("reduce")
    def _reduce(self) -> tuple[Tensor, Tensor]:
        """Collect the summed gradient; ranks exchanged it during the last backward pass of ``_regress``.

        Returns:
            Checksums ``(turns,)`` of this rank's own gradients, and the norm of the sum, ``()``.
        """
        checksums = self.parallel.finish_step()
        self.precision.unscale(self._parameters())
        return torch.stack(checksums), gradient_norm(self._parameters(), self.world, self.parallel.shards)

    @phase("update")
    def apply(self, result: StepResult) -> None:
        """Clip the gradient, update the weights by AdamW, average them, and let the matcher learn."""
        config, seen = self.config, result.images_seen
        schedules = schedules_at(config, seen)
        clip = (config.optimizer.clip_norm / (result.gradient_norm + 1e-6)).clamp(max=1.0)
        scale_gradients(self._parameters(), clip)
        self.optimizer.step(result.step, schedules.learning_rate)
        self.ema.update(schedules.ema_decay)
        self.precision.record_good_step()
        self.matcher.accept(result.match, seen + config.train.batch_size)

    def skip(self) -> None:
        """Drop the gradient of a step that must not count: the schedules go on, the weights stay."""
        self.optimizer.drop_gradients()

    def lower_loss_scale(self) -> bool:
        """Skip a step whose gradient overflowed in fp16, and halve the loss scale. False if it is no cause."""
        lowered = self.precision.lower_scale()
        if lowered:
            self.skip()
        return lowered

    def rehearse(self) -> None:
        """Make each kind of pass that a step makes, and drop the gradients, so that compiled networks are compiled."""
        size, shape = self.config.train.cell_size, self.table.image_shape
        noise = torch.zeros(size, *shape, device=self.world.device)
        labels = torch.zeros(size, dtype=torch.long, device=self.world.device)
        cell, networks = Cell(self.config.seed, 0, 0, size), (self.parallel.module, *self.objective.frozen)
        for trained, with_gradient in ((True, True), (True, False), (False, False)):
            self.parallel.module.train(trained)
            with (
                self.precision.cast_weights(*networks, by_block=self.parallel.replicated),
                torch.set_grad_enabled(with_gradient),
                cell.dropout(self.world.device),
            ):
                images = self._pass(noise, torch.ones(size), labels)
                features = self.objective.features(images)
            if with_gradient:
                (images.float().mean() + features.float().mean()).backward()
        self.optimizer.drop_gradients()

    def end(self) -> None:
        """Free what holds a process group that is lost. A computed step may still be applied or skipped."""
        if self.parallel.shards is not None:  # a sharded module holds groups itself, and is built anew
            self.ema.end()
        self.parallel.end()

    def gradients(self) -> list[Tensor]:
        """The summed gradient of the last computation, a tensor per parameter."""
        return gradients(self._parameters())

    def values(self) -> dict[str, float]:
        """Metrics by catalogue tag: time per phase and waits for images since the last call, the loss scale."""
        return {**self.clock.take(), **self.feed.values(), "optimizer/loss_scale": self.precision.scale}

    # One cell --------------------------------------------------------------------------------------------------------

    def _sample(self, turn: Turn, cell: CellInputs, *, one_step: bool, keep: bool) -> Samples:
        """One-step samples of a cell's noise.

        In a step at t = 1 this is the pass that is trained, dropout included. If it is kept, its graph waits for the
        targets; if not, it is made again once they are known, with the same bits.
        """
        self.parallel.module.train(one_step)
        with torch.set_grad_enabled(keep), turn.cell.dropout(self.world.device):
            images = self._pass(cell.noise, torch.ones(len(cell.noise)), cell.labels)
            features = self.objective.features(images)
        return Samples(features.detach(), images, features) if keep else Samples(features)

    @torch.no_grad()
    def _features_of_noise(self, cell: CellInputs) -> Tensor:
        """Features ``(b, d)`` of a cell's noise, taken for images."""
        return self.objective.features(cell.noise)

    def _noise_directions(self, cells: Sequence[Cell]) -> Tensor | None:
        """Unit vectors ``(B, d)`` of the batch's noise among the bank's rows; ``None`` if the coupling ignores it."""
        if not self.config.transport.noise_counts:
            return None
        noise = torch.cat([cell.normal("noise", self.table.image_shape, self.world.device) for cell in cells])
        directions = normalize(noise.flatten(1), dim=1)
        return pad(directions, (0, self.matcher.bank.dim - directions.shape[1]))

    def _targets(self, inputs: StepInputs, match: Match) -> Iterator[Tensor]:
        """The images ``(b, c, h, w)`` that each turn's cell regresses onto."""
        if self.config.transport.target == "independent":  # the rows of the stream, which are here already
            return iter([cell.images for cell in inputs.cells])
        return self.feed.targets(match, [turn.cell.slots for turn in inputs.turns])

    def _regress_cell(
        self, inputs: StepInputs, turn: Turn, cell: CellInputs, samples: Samples, match: Match, target: Tensor
    ) -> Tensor:
        """Accumulate the gradient of one cell; returns its loss terms, then how noise and targets correlate."""
        config, slots = self.config, turn.cell.slots
        target = to_device(target, self.world.device)
        if config.data.flip:
            target = flip_some(target, cell.flips)
        self.parallel.module.train()
        t = torch.ones(len(target)) if inputs.one_step else draw_times(config.time, turn.cell, inputs.images_seen)
        nearer = self._nearer(inputs, turn, cell, target, t) if self._is_consistency(inputs) else None
        with self.parallel.turn(turn), turn.cell.dropout(self.world.device):
            predicted, features = samples.images, samples.features_with_grad
            if predicted is None:
                x_t = interpolate(target, cell.noise, to_device(t, self.world.device))
                predicted = self._pass(x_t, t, cell.labels)
            if nearer is None:
                batch = BatchFeatures(match.generated, match.features, slots, match.labels) if inputs.one_step else None
                losses = self.objective(predicted, target, match.features[slots], features=features, batch=batch)
            else:
                losses = self.objective.consistency(predicted, *nearer, huber=config.consistency.huber)
            # The mean over all cells of the step, of which this is one.
            self.precision.backward(losses.total, turn.weight / config.cells)
        return torch.stack([*losses, (target * cell.noise).mean() / SIGMA_DATA]).detach()

    @torch.no_grad()
    def _nearer(
        self, inputs: StepInputs, turn: Turn, cell: CellInputs, target: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the generator predicts at nearer times ``r < t``, with the dropout of the pass that is trained.

        Returns:
            Images ``(b, c, h, w)``, the target itself where ``r`` is 0; and the noise between the times, ``(b,)``.
        """
        times, gaps = nearer_times(self.config.consistency, t, inputs.images_seen)
        r, apart = to_device(times, self.world.device), to_device(gaps, self.world.device)
        with turn.cell.dropout(self.world.device):
            images = self._pass(interpolate(target, cell.noise, r), times, cell.labels)
        return torch.where((r > 0)[:, None, None, None], images, target), apart

    def _pass(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The generator's images ``(b, c, h, w)`` from noisy images and times ``(b,)``, on the CPU."""
        # Computed there, the coefficients of the times are one copy to a GPU, and the same on every device.
        generator: Any = self.parallel.module
        coefficients = to_device(generator.coefficients(t), self.world.device)
        with self.precision.autocast():
            images: Tensor = generator(x_t, coefficients, labels)
        return images

    def _is_consistency(self, inputs: StepInputs) -> bool:
        """Whether the step regresses on the generator's own prediction at a nearer time."""
        return self.config.consistency.stages > 0 and not inputs.one_step

    def _parameters(self) -> list[Tensor]:
        return [p for p in self.optimizer.parameters.values() if p.requires_grad]
