"""The best values that metrics can reach without memorisation: halves of the digits against each other."""

from __future__ import annotations

import torch

from gfgw_prod.data.sources import load_table
from gfgw_prod.distributed.row_table import RowTable
from gfgw_prod.distributed.world import World
from gfgw_prod.evaluation import manifolds
from gfgw_prod.evaluation.distances import frechet_distance, kernel_distance, moments_of
from gfgw_prod.evaluation.spaces import Pixels
from gfgw_prod.sampling.pictures import levels_of
from gfgw_prod.settings.config import DataSettings

SHOWN = ("fd", "kid", "precision", "recall", "coverage", "class_agreement", "memorisation")


def main() -> None:
    torch.set_num_threads(1)
    table, world = load_table(DataSettings(source="digits")), World(0, 1, torch.device("cpu"))
    rows = Pixels(table.image_shape)(levels_of(table.rows(torch.arange(len(table)))))

    def nothing(doing: str, done: int, total: int) -> None:
        pass

    print("split" + "".join(f"{name:>17}" for name in SHOWN))
    for split in range(3):
        shuffled = torch.randperm(len(table), generator=torch.Generator().manual_seed(split))
        (first, its), (second, labels) = ((rows[ids], table.labels[ids]) for ids in (shuffled[::2], shuffled[1::2]))
        halves = RowTable.of(first, world), RowTable.of(second, world)
        around = manifolds.data_neighbours(halves[1], nothing)
        found = manifolds.crossing(*halves, around, nothing)
        kid, _ = kernel_distance(*halves, seed=0, on_progress=nothing)
        figures = {"fd": frechet_distance(moments_of(first), moments_of(second)), "kid": kid}
        figures |= manifolds.precision_recall(found) | manifolds.memorisation(found, around)
        figures |= manifolds.coverage(found, around, labels, table.num_classes, its)
        print(f"{split:<5}" + "".join(f"{figures[name]:>17.4f}" for name in SHOWN))
