"""Grids of samples and of real images: a class per column, or a square if there is only one class."""

from __future__ import annotations

import torch
from torch import Tensor

from gfgw_prod.data.sources import Table
from gfgw_prod.data.stream import KeyedOrder
from gfgw_prod.distributed.world import World
from gfgw_prod.generator.ema import Ema
from gfgw_prod.process.watchdog import watch
from gfgw_prod.sampling import pictures
from gfgw_prod.settings.config import Config
from gfgw_prod.training.reporting import Reporter


class Grids:
    """Draws the grids of one run.

    Attributes:
        classes: of the columns; empty if the generator takes none.
    """

    def __init__(self, config: Config, table: Table):
        self._config, self._table, self._side = config, table, config.telemetry.sample_grid
        self.classes = pictures.columns_of(table.labels) if config.generator.conditional else []
        self._columns = len(self.classes) if len(self.classes) > 1 else self._side
        self._count = self._side * self._columns

    def show_data(self, reporter: Reporter) -> None:
        """Write and record a grid of real images, to compare samples with."""
        if reporter.world.is_main:
            occurring = len(self._table.labels.unique())
            if self.classes and len(self.classes) < occurring:
                named = self._table.class_names or range(self._table.num_classes)
                names = ", ".join(str(named[each]) for each in self.classes)
                reporter.log(f"grids show {len(self.classes)} of {occurring} classes: {names}")
            reporter.show_picture(0, "data", self._of_data(), "data.png")

    def show_samples(self, reporter: Reporter, images: int, ema: Ema) -> None:
        """Draw, write and record a grid of samples. Collective."""
        grid = self._of_samples(ema, reporter.world)
        reporter.world.require_peers()
        reporter.show_picture(images, "samples", grid, f"samples/kimg-{images / 1000:09.1f}.png", "samples.png")

    def _of_data(self) -> Tensor:
        """Real images, uint8 ``(3, h, w)``."""
        table = self._table
        order = KeyedOrder(self._config.seed, len(table), "grid").rows(0, len(table))
        ids = order[torch.arange(self._count) % len(table)]
        if self.classes:
            ids = pictures.rows_of_classes(table.labels, self.classes, self._count // len(self.classes), order)
        return pictures.grid_of(pictures.levels_of(table.rows(ids)), self._columns)

    def _of_samples(self, ema: Ema, world: World) -> Tensor:
        """One-step samples, uint8 ``(3, h, w)``. Collective."""
        with ema.applied() as generator:
            drawn, _ = pictures.draw_samples(
                generator,
                self._table.image_shape,
                self.classes,
                count=self._count,
                seed=self._config.seed,
                stream="grid",
                device=world.device,
                before_cell=watch.progress,
            )
        return pictures.grid_of(pictures.levels_of(drawn), self._columns)
