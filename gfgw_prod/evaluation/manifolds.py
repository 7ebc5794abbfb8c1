"""Metrics of nearest neighbours: precision and recall, coverage, memorisation."""

from __future__ import annotations

import torch
from torch import Tensor

from gfgw_prod.distributed.row_table import RowTable
from gfgw_prod.evaluation.neighbours import Crossing, Progress, cross, nearest_others

PRECISION_NEIGHBOURS = 3  # Kynkäänniemi et al. 2019
COVERAGE_NEIGHBOURS = 5  # Naeem et al. 2020
Figures = dict[str, float | list[float]]


def data_neighbours(data: RowTable, on_progress: Progress) -> Tensor:
    """Distances of ``m`` data rows to their five nearest others, ascending, ``(m, 5)``. Collective."""
    return nearest_others(data, COVERAGE_NEIGHBOURS, "data", on_progress)


def crossing(samples: RowTable, data: RowTable, around_data: Tensor, on_progress: Progress) -> Crossing:
    """Compare samples with data; ``around_data`` comes from ``data_neighbours``. Collective."""
    around_samples = nearest_others(samples, PRECISION_NEIGHBOURS, "samples", on_progress)
    return cross(samples, data, around_samples[:, -1], around_data[:, PRECISION_NEIGHBOURS - 1], on_progress)


def precision_recall(found: Crossing) -> Figures:
    """Shares of samples in the data's 3-neighbour balls and of data in the samples' (Kynkäänniemi et al. 2019)."""
    return {"precision": _share(found.in_data), "recall": _share(found.in_samples)}


def coverage(
    found: Crossing, around_data: Tensor, data_labels: Tensor, num_classes: int, asked: Tensor | None
) -> Figures:
    """Share of the data whose 5-neighbour ball holds a sample (Naeem et al. 2020), overall and by class.

    A sample's class is that of the nearest data row. ``class_divergence`` is the total variation distance between the
    classes of samples and of data; ``class_agreement`` is the share of samples whose class is the one they were
    generated for, ``asked`` ``(n,)``.
    """
    covered = found.sample_distance < around_data[:, COVERAGE_NEIGHBOURS - 1]
    shown = data_labels[found.nearest_row]
    sizes = torch.bincount(data_labels, minlength=num_classes).double()
    present = sizes > 0  # a class may have no images
    covered_by_class = torch.bincount(data_labels[covered], minlength=num_classes) / sizes
    shown_share = torch.bincount(shown, minlength=num_classes).double() / len(shown)
    figures: Figures = {
        "coverage": _share(covered),
        "class_coverage_least": float(covered_by_class[present].min()),
        "class_divergence": float((shown_share - sizes / sizes.sum()).abs().sum() / 2),
    }
    if asked is not None:
        figures["class_agreement"] = _share(shown == asked)
    figures["coverage_by_class"] = covered_by_class.nan_to_num(0).tolist()
    figures["share_by_class"] = shown_share.tolist()
    return figures


def memorisation(found: Crossing, around_data: Tensor) -> Figures:
    """Share of samples nearer to their nearest training image than that image is to any other training image.

    This is one minus the authenticity of Alaa et al. 2022 (AuthPct of Stein et al. 2023). ``copies`` is the share of
    samples that equal a training image.
    """
    nearer = found.nearest_distance < around_data[found.nearest_row, 0]
    return {"memorisation": _share(nearer), "copies": _share(found.nearest_distance == 0)}


def _share(flags: Tensor) -> float:
    return int(flags.sum()) / len(flags)
