"""One optimisation step: generate, match, regress, update."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gfgw_prod import schedule
from gfgw_prod.config import Config, TimeSettings
from gfgw_prod.data.sources import Table
from gfgw_prod.data.stream import CellRows, KeyedOrder, flip_some
from gfgw_prod.distributed.cells import Cell, Round, Spread
from gfgw_prod.distributed.parallel import Parallel
from gfgw_prod.distributed.reduction import gradient_norm, scale_gradients
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
class StepReport:
    """What a step found: this rank's loss terms and scalars, still on the device, and streamed row ids."""

    terms: Tensor  # (rounds, len(TERMS))
    streamed: Tensor  # (rounds, b), on the CPU
    gradient_norm: Tensor
    lr: float
    epsilon: float
    structure_weight: float
    match: Match
    match_seconds: float
    match_bytes: int

    def values(self, world: World, spread: Spread) -> dict[str, float]:
        """Metrics by tag of the catalogue; losses are means over all cells, in the order of cells. Collective."""
        means = spread.in_order(world.gather(self.terms)).double().mean(dim=0).tolist()
        streamed = spread.in_order(world.gather(self.streamed.to(world.device))).flatten()
        rows = torch.cat([streamed, self.match.rows]).cpu()
        return {f"loss/{term}": mean for term, mean in zip(TERMS, means, strict=True)} | {
            "data/batch_crc": zlib.crc32(rows.numpy().astype("<i8").tobytes()),
            "optimizer/gradient_norm": float(self.gradient_norm),
            "optimizer/learning_rate": self.lr,
            "transport/epsilon": self.epsilon,
            "transport/structure_weight": self.structure_weight,
            "transport/seconds": self.match_seconds,
            "transport/bytes_sent": self.match_bytes,
            **self.match.values(),
        }


@dataclass
class TrainingStep:
    """Everything a step needs. Calling it makes one step and returns its report."""

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

    def __call__(self, step: int, stream: Iterator[CellRows]) -> StepReport:
        config, world = self.config, self.world
        images_seen = step * config.train.batch_size
        turns = self.parallel.spread.rounds(config.seed, step, size=config.train.cell_size, rank=world.rank)
        inputs = [CellInputs.draw(turn.cell, next(stream), self.table, world.device) for turn in turns]

        generated = [self._generate(cell) for cell in inputs]
        started, sent = time.perf_counter(), world.traffic.bytes
        match = self._match(step, images_seen, generated)
        seconds, sent = time.perf_counter() - started, world.traffic.bytes - sent
        terms = [self._regress(turn, cell, match, images_seen) for turn, cell in zip(turns, inputs, strict=True)]
        self.parallel.finish()
        norm, lr = self._update(images_seen)
        return StepReport(
            torch.stack(terms),
            torch.stack([cell.ids for cell in inputs]),
            norm,
            lr,
            self.matcher.epsilon(images_seen),
            self.matcher.structure_weight(images_seen),
            match,
            seconds,
            sent,
        )

    @torch.no_grad()
    def _generate(self, cell: CellInputs) -> Tensor:
        """Features of one-step samples, ``(b, d)``."""
        self.parallel.module.eval()
        samples = self.parallel.module(cell.noise, cell.noise.new_ones(len(cell.noise)), cell.labels)
        features: Tensor = self.extractor(samples).float()
        return features

    @torch.no_grad()
    def _match(self, step: int, images_seen: int, features: list[Tensor]) -> Match:
        """Couples the features of all ranks' cells, in the order of cells, with the bank."""
        config = self.config
        gathered = self.world.gather(torch.stack(features))  # (W, rounds, b, d)
        batch = self.parallel.spread.in_order(gathered).flatten(0, 1)
        cells = [Cell(config.seed, step, index, config.train.cell_size) for index in range(config.cells)]
        uniforms = torch.cat([cell.uniform("target") for cell in cells])
        rows = self._order.rows(images_seen, config.train.batch_size)
        labels = self.table.labels[rows]
        return self.matcher.match(batch, rows, labels, uniforms, step=step, images=images_seen)

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

    def _update(self, images_seen: int) -> tuple[Tensor, float]:
        """Clips, steps AdamW and averages the weights; returns the gradient norm and the learning rate."""
        o, e, batch_size = self.config.optimizer, self.config.ema, self.config.train.batch_size
        parameters = [p for p in self.parallel.module.parameters() if p.requires_grad]
        norm = gradient_norm(parameters, self.world)
        scale_gradients(parameters, (o.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        lr = schedule.learning_rate(o.lr, o.final_lr_ratio, o.warmup_kimg, o.decay_kimg, images_seen)
        self.optimizer.step(lr)
        self.ema.update(schedule.ema_decay(e.halflife_kimg, e.rampup_ratio, batch_size, images_seen + batch_size))
        return norm, lr


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
