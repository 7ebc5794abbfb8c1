"""Figures of nearest neighbours: precision and recall, coverage of classes, memorisation."""

from __future__ import annotations

import torch
from torch import Tensor

from gfgw_prod.distributed.row_table import RowTable
from gfgw_prod.evaluation.neighbours import Crossing, Tick, cross, nearest_others

PRECISION_NEIGHBOURS = 3  # Kynkäänniemi et al. 2019
COVERAGE_NEIGHBOURS = 5  # Naeem et al. 2020
Figures = dict[str, float | list[float]]


def data_neighbours(data: RowTable, tick: Tick) -> Tensor:
    """Distances of ``m`` data rows to the nearest others, as many as any figure here needs, ``(m, 5)``. Collective."""
    return nearest_others(data, COVERAGE_NEIGHBOURS, "data", tick)


def crossing(samples: RowTable, data: RowTable, around_data: Tensor, tick: Tick) -> Crossing:
    """What the figures are taken from, with ``around_data`` of ``data_neighbours``. Collective."""
    around_samples = nearest_others(samples, PRECISION_NEIGHBOURS, "samples", tick)
    return cross(samples, data, around_samples[:, -1], around_data[:, PRECISION_NEIGHBOURS - 1], tick)


def precision_recall(found: Crossing) -> Figures:
    """Share of samples in the data's 3-neighbour balls, and of the data in the samples' (Kynkäänniemi et al. 2019)."""
    return {"precision": _share(found.in_data), "recall": _share(found.in_samples)}


def coverage(
    found: Crossing, around_data: Tensor, data_labels: Tensor, num_classes: int, asked: Tensor | None
) -> Figures:
    """Share of the data whose 5-neighbour ball holds a sample (Naeem et al. 2020), over all and by class.

    A sample's class is that of the nearest data row. ``class_divergence`` is the total variation distance of these
    classes from the data's; ``class_agreement`` the share that has the class ``asked`` for, ``(n,)``, if any was.
    """
    covered = found.sample_distance < around_data[:, COVERAGE_NEIGHBOURS - 1]
    shown = data_labels[found.nearest_row]
    sizes = torch.bincount(data_labels, minlength=num_classes).double()
    there = sizes > 0  # a class may have no images
    covered_by_class = torch.bincount(data_labels[covered], minlength=num_classes) / sizes
    shown_share = torch.bincount(shown, minlength=num_classes).double() / len(shown)
    figures: Figures = {
        "coverage": _share(covered),
        "class_coverage_least": float(covered_by_class[there].min()),
        "class_divergence": float((shown_share - sizes / sizes.sum()).abs().sum() / 2),
    }
    if asked is not None:
        figures["class_agreement"] = _share(shown == asked)
    figures["coverage_by_class"] = covered_by_class.nan_to_num(0).tolist()
    figures["share_by_class"] = shown_share.tolist()
    return figures


def memorisation(found: Crossing, around_data: Tensor) -> Figures:
    """Share of samples that are nearer to their nearest training image than that is to any other training image.

    It is one minus the authenticity of Alaa et al. 2022 (AuthPct of Stein et al. 2023). ``copies`` is the share that is
    a training image.
    """
    nearer = found.nearest_distance < around_data[found.nearest_row, 0]
    return {"memorisation": _share(nearer), "copies": _share(found.nearest_distance == 0)}


def _share(flags: Tensor) -> float:
    return int(flags.sum()) / len(flags)
