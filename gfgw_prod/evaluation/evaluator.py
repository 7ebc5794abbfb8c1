"""Measures samples of a generator against a data set, over all ranks, with figures that do not depend on their number.

Images come in fixed blocks, each made and encoded by one rank. Features are gathered in the order of blocks, and summed
block by block on rank 0. What compares rows with rows keeps them, spread over ranks; everything else forgets them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from gfgw_prod.data.sources import Table
from gfgw_prod.data.stream import KeyedOrder
from gfgw_prod.distributed.row_table import RowTable
from gfgw_prod.distributed.world import World
from gfgw_prod.evaluation import manifolds
from gfgw_prod.evaluation.distances import Moments, frechet_distance, kernel_distance
from gfgw_prod.evaluation.manifolds import Figures
from gfgw_prod.evaluation.neighbours import Tick
from gfgw_prod.evaluation.plan import Plan
from gfgw_prod.evaluation.spaces import Space
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.sampling.pictures import levels_of
from gfgw_prod.sampling.sampler import CELL, Sampler, sampling_times, turns
from gfgw_prod.settings.evaluation import FEWEST, Metric, SpaceName

BLOCK = 256  # images of one rank in one turn
STREAM = "evaluate"
COMPARE_ROWS: frozenset[Metric] = frozenset({"kid", "pr", "coverage", "memorisation"})
CROSSING: frozenset[Metric] = frozenset({"pr", "coverage", "memorisation"})


class Told(Protocol):
    """Told before each part of the work, equally often on all ranks."""

    def __call__(self, title: str, done: int = 0, total: int = 0, unit: str = "images") -> None:
        """What is being done, and how many of how many are; of 0 if they are not counted."""


def _untold(title: str, done: int = 0, total: int = 0, unit: str = "images") -> None:
    """Nobody is told."""


@dataclass
class Set:
    """A set of images in one feature space.

    Attributes:
        moments: on rank 0.
        rows: features ``(d,)`` of each image, in main memory; of none if no metric compares them.
        neighbours: of data among data, once they are needed.
    """

    moments: Moments
    rows: RowTable
    neighbours: Tensor | None = None


class Evaluator:
    """Measures generators against one data set. Every method is collective.

    Args:
        spaces: by name, on the world's device: those of the plan.
        num: samples.
        seed: of noise, classes and subsets.
        steps: of the sampler.
        least_time: above which the generator was trained, for samplers of several steps.
        conditional: whether the generator knows classes. They are drawn as they occur in the data.
        tick: may raise, on all ranks alike, to break off.

    Raises:
        UserError: if there are too few samples or images.
    """

    def __init__(
        self,
        table: Table,
        plan: Plan,
        spaces: dict[SpaceName, Space],
        world: World,
        *,
        num: int,
        seed: int,
        steps: int = 1,
        least_time: float = 0.0,
        conditional: bool,
        tick: Told = _untold,
    ):
        if len(table) < FEWEST:
            raise UserError(f"the data set has {len(table)} images; to measure against takes at least {FEWEST}")
        self._table, self._plan, self._spaces, self._world = table, plan, spaces, world
        self._num, self._seed, self._times, self._tick = num, seed, sampling_times(steps, least_time), tick
        self._conditional = conditional
        self._order = KeyedOrder(seed, len(table), STREAM)
        self._data: dict[SpaceName, Set] | None = None

    def measure(
        self, generator: nn.Module, autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> Figures:
        """All figures of the plan; the same on all ranks. ``autocast`` is around the generator alone."""
        if self._data is None:
            self._data = self._encoded(len(self._table), self._rows, "encoding the data")
        sampler = Sampler(
            generator,
            self._table.image_shape,
            self._labels,
            seed=self._seed,
            stream=STREAM,
            device=self._world.device,
            times=self._times,
            autocast=autocast,
        )
        drawn = self._encoded(self._num, lambda start, size: levels_of(sampler.images(start, size)), "drawing samples")
        figures: Figures = {}
        for space in self._plan.used:
            figures |= self._compared(space, drawn[space], self._data[space])
        return self._world.broadcast(figures)

    def _compared(self, space: SpaceName, samples: Set, data: Set) -> Figures:
        metrics = [metric for metric, its in self._plan.spaces.items() if its == space]

        def tick(doing: str, done: int, total: int) -> None:
            self._tick(f"comparing {space}: {doing}", done, total, "parts")

        figures: Figures = {}
        if distances := [metric for metric in metrics if metric in ("fd", "fid", "fd-dinov2")]:
            self._tick(f"comparing {space}: Fréchet distance")
            if self._world.is_main:
                distance = frechet_distance(samples.moments, data.moments)
                figures |= {metric.replace("-", "_"): distance for metric in distances}
        if "kid" in metrics:
            kid, deviation = kernel_distance(samples.rows, data.rows, seed=self._seed, tick=tick)
            figures |= {"kid": kid, "kid_std": deviation}
        if CROSSING & set(metrics):
            figures |= self._crossed(metrics, samples, data, tick)
        return figures

    def _crossed(self, metrics: list[Metric], samples: Set, data: Set, tick: Tick) -> Figures:
        if data.neighbours is None:
            data.neighbours = manifolds.data_neighbours(data.rows, tick)
        around, labels = data.neighbours, self._table.labels
        found = manifolds.crossing(samples.rows, data.rows, around, tick)
        asked = self._labels(torch.arange(self._num)) if self._conditional else None
        figures: Figures = {}
        if "pr" in metrics:
            figures |= manifolds.precision_recall(found)
        if "coverage" in metrics:
            figures |= manifolds.coverage(found, around, labels, self._table.num_classes, asked)
        if "memorisation" in metrics:
            figures |= manifolds.memorisation(found, around)
        return figures

    @torch.no_grad()
    def _encoded(self, count: int, images_of: Callable[[int, int], Tensor], doing: str) -> dict[SpaceName, Set]:
        """Features of ``count`` images, of which ``images_of(start, size)`` gives those of one turn."""
        world, keep = self._world, {self._plan.spaces[metric] for metric in COMPARE_ROWS & self._plan.spaces.keys()}
        sets = {
            name: Set(
                Moments(space.dim if world.is_main else 0, world.device),
                RowTable(count if name in keep else 0, (space.dim,), world, device=torch.device("cpu")),
            )
            for name, space in self._spaces.items()
        }
        for turn in turns(count, BLOCK, world):
            self._tick(doing, turn.first, count)
            images = images_of(turn.start, turn.size)
            for name, space in self._spaces.items():
                rows = turn.gathered(torch.cat([space(cell) for cell in images.split(CELL)]), world)
                if world.is_main:
                    for block in rows.split(BLOCK):
                        sets[name].moments.add(block)
                if name in keep:
                    sets[name].rows.fill(turn.first, rows)
        return sets

    def _rows(self, start: int, size: int) -> Tensor:
        ids = torch.arange(start, start + size) % len(self._table)  # beyond the end they are not wanted
        return levels_of(self._table.rows(ids)).to(self._world.device)

    def _labels(self, numbers: Tensor) -> Tensor:
        """Classes as they occur in the data: those of its rows in an order of its own."""
        first, last = int(numbers[0]), int(numbers[-1])
        return self._table.labels[self._order.rows(first, last - first + 1)]
