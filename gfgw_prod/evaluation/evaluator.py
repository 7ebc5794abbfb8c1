"""Measures samples of a generator, or any images, against a data set; the figures are the same for any world size.

Each fixed block of images is made and encoded by one rank. Features are gathered in block order and summed block by
block on rank 0. Metrics that compare rows keep them, spread over the ranks; the others discard them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gfgw_prod.data.sources import Table
from gfgw_prod.data.stream import KeyedOrder
from gfgw_prod.distributed.row_table import RowTable
from gfgw_prod.distributed.world import World
from gfgw_prod.evaluation import manifolds
from gfgw_prod.evaluation.distances import Moments, frechet_distance, kernel_distance
from gfgw_prod.evaluation.manifolds import Figures
from gfgw_prod.evaluation.metric_spaces import MetricSpaces
from gfgw_prod.evaluation.neighbours import Progress
from gfgw_prod.evaluation.spaces import Space
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.sampling.pictures import levels_of
from gfgw_prod.sampling.sampler import CELL, Sampler, batches
from gfgw_prod.settings.evaluation import FEWEST, EvaluationMetric, SpaceName

BLOCK = 256  # images of one rank at a time
STREAM = "evaluate"
COMPARE_ROWS: frozenset[EvaluationMetric] = frozenset({"kid", "pr", "coverage", "memorisation"})
FRECHET: tuple[EvaluationMetric, ...] = ("fd", "fid", "fd-dinov2")
CROSSING: frozenset[EvaluationMetric] = frozenset({"pr", "coverage", "memorisation"})
# Called before each part of the work, equally often on all ranks: title, done, total (0: not counted), unit.
OnProgress = Callable[[str, int, int, str], None]
ImagesOf = Callable[[int, int], Tensor]  # (start, size) -> images of 256 levels, uint8 (size, c, h, w)


@dataclass
class FeatureSet:
    """A set of images in one feature space."""

    moments: Moments  # on rank 0
    rows: RowTable  # features (d,) of each image, in host memory; empty unless a metric compares them
    neighbours: Tensor | None = None  # distances of data rows to their nearest others, computed on first use


class Evaluator:
    """Measures generators and other sets of images against one data set. Every method is collective.

    Args:
        spaces: every space of ``metrics``, on the world's device.
        num: samples of a generator.
        seed: of noise, classes and subsets.
        conditional: whether the generator takes classes; they are drawn with the frequencies of the data.
        on_progress: may raise, on all ranks alike, to abort.

    Raises:
        UserError: if there are too few samples or images.
    """

    def __init__(
        self,
        table: Table,
        metrics: MetricSpaces,
        spaces: dict[SpaceName, Space],
        world: World,
        *,
        num: int = FEWEST,
        seed: int,
        conditional: bool = False,
        on_progress: OnProgress = lambda *_: None,
    ):
        if len(table) < FEWEST:
            raise UserError(f"the data set has {len(table)} images; evaluation takes at least {FEWEST}")
        self._table, self._metrics, self._spaces, self._world = table, metrics, spaces, world
        self._num, self._seed, self._conditional, self._on_progress = num, seed, conditional, on_progress
        self._order = KeyedOrder(seed, len(table), STREAM)
        self._data: dict[SpaceName, FeatureSet] | None = None

    def cautions(self, count: int) -> list[str]:
        """A line for each space with fewer of ``count`` samples, or of the data, than a Fréchet distance needs."""
        fewer = "samples" if count < len(self._table) else "images of the data"
        few = min(count, len(self._table))
        return [
            f"{metric} in {space} is of {few:,} {fewer}, fewer than the {self._spaces[space].dim:,} dimensions: "
            "it says more about their number than about their quality; compare it at equal numbers only"
            for metric, space in self._metrics.by_metric.items()
            if metric in FRECHET and few < self._spaces[space].dim
        ]

    def measure(
        self, generator: nn.Module, autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> Figures:
        """Return all figures, the same on all ranks; ``autocast`` applies to the generator alone."""
        sampler = Sampler(
            generator,
            self._table.image_shape,
            self._labels,
            seed=self._seed,
            stream=STREAM,
            device=self._world.device,
            autocast=autocast,
        )
        asked = self._labels(torch.arange(self._num)) if self._conditional else None
        return self._measure(
            self._num, lambda start, size: levels_of(sampler.images(start, size)), asked, "drawing samples"
        )

    def measure_images(self, samples: Table) -> Figures:
        """Return all figures of images that exist already; their classes, if they have several, are those asked for."""
        asked = samples.labels if samples.num_classes > 1 else None
        return self._measure(len(samples), self._rows_of(samples), asked, "encoding samples")

    def _measure(self, count: int, images_of: ImagesOf, asked: Tensor | None, title: str) -> Figures:
        if self._data is None:
            self._data = self._encode(len(self._table), self._rows_of(self._table), "encoding the data")
        drawn = self._encode(count, images_of, title)
        figures: Figures = {}
        for space in self._metrics.used:
            figures |= self._compare(space, drawn[space], self._data[space], asked)
        return self._world.broadcast(figures)

    def _compare(self, space: SpaceName, samples: FeatureSet, data: FeatureSet, asked: Tensor | None) -> Figures:
        metrics = [metric for metric, its in self._metrics.by_metric.items() if its == space]

        def on_progress(title: str, done: int, total: int) -> None:
            self._on_progress(f"comparing {space}: {title}", done, total, "parts")

        figures: Figures = {}
        if distances := [metric for metric in metrics if metric in FRECHET]:
            on_progress("Fréchet distance", 0, 0)
            if self._world.is_main:
                distance = frechet_distance(samples.moments, data.moments)
                figures |= {metric.replace("-", "_"): distance for metric in distances}
        if "kid" in metrics:
            kid, deviation = kernel_distance(samples.rows, data.rows, seed=self._seed, on_progress=on_progress)
            figures |= {"kid": kid, "kid_std": deviation}
        if CROSSING & set(metrics):
            figures |= self._compare_rows(metrics, samples, data, asked, on_progress)
        return figures

    def _compare_rows(
        self,
        metrics: list[EvaluationMetric],
        samples: FeatureSet,
        data: FeatureSet,
        asked: Tensor | None,
        on_progress: Progress,
    ) -> Figures:
        if data.neighbours is None:
            data.neighbours = manifolds.data_neighbours(data.rows, on_progress)
        around, labels = data.neighbours, self._table.labels
        found = manifolds.crossing(samples.rows, data.rows, around, on_progress)
        figures: Figures = {}
        if "pr" in metrics:
            figures |= manifolds.precision_recall(found)
        if "coverage" in metrics:
            figures |= manifolds.coverage(found, around, labels, self._table.num_classes, asked)
        if "memorisation" in metrics:
            figures |= manifolds.memorisation(found, around)
        return figures

    @torch.no_grad()
    def _encode(self, count: int, images_of: ImagesOf, title: str) -> dict[SpaceName, FeatureSet]:
        """Encode ``count`` images; ``images_of(start, size)`` makes images ``start`` to ``start + size``."""
        world, by_metric = self._world, self._metrics.by_metric
        keep = {by_metric[metric] for metric in COMPARE_ROWS & by_metric.keys()}
        sets = {
            name: FeatureSet(
                Moments(space.dim if world.is_main else 0, world.device),
                RowTable(count if name in keep else 0, (space.dim,), world, device=torch.device("cpu")),
            )
            for name, space in self._spaces.items()
        }
        for batch in batches(count, BLOCK, world):
            self._on_progress(title, batch.first, count, "images")
            images = images_of(batch.start, batch.size)
            for name, space in self._spaces.items():
                rows = batch.gather(torch.cat([space(cell) for cell in images.split(CELL)]), world)
                if world.is_main:
                    for block in rows.split(BLOCK):
                        sets[name].moments.add(block)
                if name in keep:
                    sets[name].rows.fill(batch.first, rows)
        return sets

    def _rows_of(self, table: Table) -> ImagesOf:
        def rows(start: int, size: int) -> Tensor:
            ids = torch.arange(start, start + size) % len(table)  # those beyond the end are dropped later
            return levels_of(table.rows(ids)).to(self._world.device)

        return rows

    def _labels(self, numbers: Tensor) -> Tensor:
        """Classes with the frequencies of the data: the labels of its rows in a permuted order."""
        first, last = int(numbers[0]), int(numbers[-1])
        return self._table.labels[self._order.rows(first, last - first + 1)]
