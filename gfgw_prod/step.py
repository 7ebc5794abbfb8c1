"""One optimisation step: generate, match, regress; then update.

``compute`` changes nothing that outlives the step, so a step can be computed again: the same bits, if the hardware is
sound. ``apply`` makes it count.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gfgw_prod import schedule
from gfgw_prod.config import Config, TimeSettings
from gfgw_prod.data.sources import Table
from gfgw_prod.data.stream import CellRows, KeyedOrder, flip_some
from gfgw_prod.distributed.cells import Cell, Round, Spread
from gfgw_prod.distributed.checksums import checksum
from gfgw_prod.distributed.parallel import Parallel
from gfgw_prod.distributed.reduction import gradient_norm, gradients, scale_gradients
from gfgw_prod.distributed.world import World
from gfgw_prod.generator import interpolate
from gfgw_prod.generator.ema import Ema
from gfgw_prod.losses.boundary import boundary_loss
from gfgw_prod.losses.feature import feature_loss
from gfgw_prod.losses.flow import flow_loss
from gfgw_prod.losses.structure import structure_loss
from gfgw_prod.optimizer import AdamW
from gfgw_prod.transport.matching import Match, Matcher

TERMS = ("total", "flow", "feature", "structure", "lpips", "boundary")


@dataclass(frozen=True)
class StepResult:
    """What a step computed, on the device; its gradient stands in the parameters' ``.grad``."""

    step: int
    images_seen: int  # before it
    terms: Tensor  # (rounds, len(TERMS)), of this rank
    counts: Tensor  # (rounds,), 0 for turns of a short rank
    streamed: Tensor  # (rounds, b) row ids, on the CPU
    gradient_norm: Tensor
    finite: Tensor  # whether the generated features were, and what the matcher would learn
    match: Match
    match_seconds: float
    match_bytes: int
    checksums: Tensor  # (rounds, 3), of this rank's features, loss terms and gradients, each before it met any other
    schedules: dict[str, float]  # learning rate, epsilon and lambda, by tag of the catalogue

    @property
    def largest_loss(self) -> Tensor:
        """The largest total loss of this rank's cells."""
        return torch.where(self.counts > 0, self.terms[:, 0], 0.0).max()

    def values(self, world: World, spread: Spread) -> dict[str, float]:
        """Metrics by tag of the catalogue; losses are means over all cells, in the order of cells. Collective."""
        means = spread.in_order(world.gather(self.terms)).double().mean(dim=0).tolist()
        streamed = spread.in_order(world.gather(self.streamed.to(world.device))).flatten()
        rows = torch.cat([streamed, self.match.rows]).cpu()
        return {f"loss/{term}": mean for term, mean in zip(TERMS, means, strict=True)} | {
            "data/batch_crc": zlib.crc32(rows.numpy().astype("<i8").tobytes()),
            "optimizer/gradient_norm": float(self.gradient_norm),
            "transport/seconds": self.match_seconds,
            "transport/bytes_sent": self.match_bytes,
            **self.schedules,
            **self.match.values(),
        }


@dataclass
class TrainingStep:
    """Everything a step needs."""

    config: Config
    world: World
    table: Table
    parallel: Parallel
    extractor: nn.Module
    perceptual: nn.Module | None
    matcher: Matcher
    optimizer: AdamW
    ema: Ema

    def __post_init__(self) -> None:
        self._order = KeyedOrder(self.config.seed, len(self.table))

    @property
    def turns(self) -> int:
        """Cells that this rank runs in a step."""
        return self.parallel.spread.turns

    def compute(self, step: int, rows: Sequence[CellRows]) -> StepResult:
        """Computes a step from what the stream brings to its turns. Collective."""
        config, world = self.config, self.world
        images_seen = step * config.train.batch_size
        turns = self.parallel.spread.rounds(config.seed, step, size=config.train.cell_size, rank=world.rank)
        self.parallel.module.zero_grad(set_to_none=True)  # of a computation that did not count
        inputs = [
            CellInputs.draw(turn.cell, found, self.table, world.device) for turn, found in zip(turns, rows, strict=True)
        ]

        generated = torch.stack([self._generate(cell) for cell in inputs])
        started, sent = time.perf_counter(), world.traffic.bytes
        match, finite = self._match(step, images_seen, generated)
        seconds, sent = time.perf_counter() - started, world.traffic.bytes - sent
        terms = [self._regress(turn, cell, match, images_seen) for turn, cell in zip(turns, inputs, strict=True)]
        own_gradients = self.parallel.finish()
        checksums = [
            torch.stack([checksum([features]), checksum([found]), gradient])
            for features, found, gradient in zip(generated, terms, own_gradients, strict=True)
        ]
        return StepResult(
            step,
            images_seen,
            torch.stack(terms),
            torch.tensor([turn.weight for turn in turns], device=world.device),
            torch.stack([cell.ids for cell in inputs]),
            gradient_norm(self._parameters(), world),
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
        e, batch_size, images_seen = self.config.ema, self.config.train.batch_size, result.images_seen
        scale_gradients(
            self._parameters(), (self.config.optimizer.clip_norm / (result.gradient_norm + 1e-6)).clamp(max=1.0)
        )
        self.optimizer.step(self._learning_rate(images_seen))
        self.ema.update(schedule.ema_decay(e.halflife_kimg, e.rampup_ratio, batch_size, images_seen + batch_size))
        self.matcher.accept(result.match, images_seen + batch_size)

    def gradients(self) -> list[Tensor]:
        """The sum over all cells of the last computation."""
        return gradients(self._parameters())

    def skip(self) -> None:
        """Lets a step pass that must not count: the schedules go on, the weights stay."""
        self.parallel.module.zero_grad(set_to_none=True)
        self.optimizer.steps += 1

    @torch.no_grad()
    def _generate(self, cell: CellInputs) -> Tensor:
        """Features of one-step samples, ``(b, d)``."""
        self.parallel.module.eval()
        samples = self.parallel.module(cell.noise, cell.noise.new_ones(len(cell.noise)), cell.labels)
        features: Tensor = self.extractor(samples).float()
        return features

    @torch.no_grad()
    def _match(self, step: int, images_seen: int, features: Tensor) -> tuple[Match, Tensor]:
        """Couples the features ``(rounds, b, d)`` of all ranks' cells, in the order of cells, with the bank.

        Returns:
            The match, and whether all features, those that were not count as zero, and all it teaches were finite.
        """
        config = self.config
        gathered = self.world.gather(features)  # (W, rounds, b, d)
        batch = self.parallel.spread.in_order(gathered).flatten(0, 1)
        finite, batch = batch.isfinite().all(), batch.nan_to_num(0.0, 0.0, 0.0)
        cells = [Cell(config.seed, step, index, config.train.cell_size) for index in range(config.cells)]
        uniforms = torch.cat([cell.uniform("target") for cell in cells])
        rows = self._order.rows(images_seen, config.train.batch_size)
        labels = self.table.labels[rows]
        match = self.matcher.match(batch, rows, labels, uniforms, step=step, images=images_seen)
        for tensor in match.learned:
            finite = finite & tensor.isfinite().all()
        return match, finite

    def _regress(self, turn: Round, cell: CellInputs, match: Match, images_seen: int) -> Tensor:
        """Accumulates the gradient of one cell; returns its loss terms, ``(len(TERMS),)``."""
        config, weights = self.config, self.config.loss
        target = cell.images
        if config.transport.target != "independent":
            target = match.target_images(self.table, turn.cell.slots).to(self.world.device)
        if config.data.flip:
            target = flip_some(target, cell.flips)
        t = draw_times(config.time, turn.cell, images_seen).to(self.world.device)
        zero = target.new_zeros(())
        generator = self.parallel.trained
        self.parallel.module.train()
        with self.parallel.turn(turn), turn.cell.dropout(self.world.device):
            predicted = generator(interpolate(target, cell.noise, t), t, cell.labels)
            flow = flow_loss(predicted, target, huber=weights.flow_huber, scales=weights.flow_scales)
            feature = structure = lpips = boundary = zero
            if weights.feature or weights.structure:
                features = self.extractor(predicted).float()
                matched = match.target_features(turn.cell.slots)
                feature = feature_loss(features, matched)
                structure = structure_loss(features, matched)
            if self.perceptual is not None:
                lpips = self.perceptual(predicted, target)
            if not config.generator.exact_boundary and weights.boundary:
                boundary = boundary_loss(generator, target, cell.labels)
            total = (
                weights.flow * flow
                + weights.feature * feature
                + weights.structure * structure
                + weights.lpips * lpips
                + weights.boundary * boundary
            )
            (total * (turn.weight / config.cells)).backward()
        return torch.stack([total, flow, feature, structure, lpips, boundary]).detach()

    def _parameters(self) -> list[Tensor]:
        return [p for p in self.parallel.module.parameters() if p.requires_grad]

    def _learning_rate(self, images_seen: int) -> float:
        o = self.config.optimizer
        return schedule.learning_rate(o.lr, o.final_lr_ratio, o.warmup_kimg, o.decay_kimg, images_seen)


@dataclass(frozen=True)
class CellInputs:
    """A cell's random draws and streamed rows, on the device, and the rows' ids, on the CPU."""

    ids: Tensor  # (b,)
    noise: Tensor  # (b, c, h, w)
    images: Tensor  # (b, c, h, w), from the stream
    labels: Tensor  # (b,)
    flips: Tensor  # (b,) uniform

    @classmethod
    def draw(cls, cell: Cell, rows: CellRows, table: Table, device: torch.device) -> CellInputs:
        assert rows.cell == cell, "the stream and the rounds must agree"
        return cls(
            ids=rows.ids,
            noise=cell.normal("noise", table.image_shape, device),
            images=rows.images.to(device),
            labels=rows.labels.to(device),
            flips=cell.uniform("flip", device),
        )


def draw_times(settings: TimeSettings, cell: Cell, images_seen: int) -> Tensor:
    """Times ``(b,)``: 1 for an evenly spread ``one_step_share`` of the slots, else logit-Student-t over the stage."""
    low, high = settings.stage1_range if images_seen < settings.stage1_kimg * 1000 else settings.stage2_range
    stream = cell.stream("time")
    normal = torch.randn(cell.size, generator=stream)
    chi_square = torch.randn(cell.size, settings.freedom, generator=stream).square().sum(dim=1)
    student = normal / (chi_square / settings.freedom).sqrt()
    t = low + (high - low) * torch.sigmoid(settings.location + settings.scale * student)
    counted = torch.arange(cell.slots.start, cell.slots.stop + 1, dtype=torch.float64) * settings.one_step_share
    one_step = counted[1:].floor() > counted[:-1].floor()
    return torch.where(one_step, 1.0, t)
