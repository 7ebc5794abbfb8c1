"""How good samples are: Fréchet distance of raw pixels, precision and recall among their principal components."""

from __future__ import annotations

import torch
from torch import Tensor

from gfgw_prod.data.sources import Table
from gfgw_prod.evaluation.distances import frechet_distance, moments_of
from gfgw_prod.sampling.pictures import draw_samples

SAMPLES, NOISE_SEED = 5_000, 0  # the same noise and classes for every run
COMPONENTS, NEIGHBOURS = 32, 3


def quality(sampler: torch.nn.Module, table: Table) -> dict[str, float]:
    """Figures of one-step samples by name."""
    images, _ = draw_samples(
        sampler,
        table.image_shape,
        table.num_classes,
        count=SAMPLES,
        seed=NOISE_SEED,
        stream="quality",
        device=torch.device("cpu"),
    )
    return figures(_pixels(images), _pixels(table.rows(torch.arange(len(table)))))


def quality_of_halves(table: Table) -> dict[str, float]:
    """The same figures of one random half of the data against the other."""
    data = _pixels(table.rows(torch.randperm(len(table), generator=torch.Generator().manual_seed(0))))
    return figures(data[::2], data[1::2])


def figures(drawn: Tensor, data: Tensor) -> dict[str, float]:
    """Figures of drawn rows ``(n, d)`` against the data's ``(m, d)``, by name."""
    axes = torch.linalg.svd(data - data.mean(dim=0), full_matrices=False).Vh[:COMPONENTS]
    # As many samples as data: radii of neighbours depend on the number.
    near_drawn, near_data = drawn[: len(data)] @ axes.T, data @ axes.T
    return {
        "frechet": frechet_distance(moments_of(drawn), moments_of(data)),
        "precision": covered(near_drawn, near_data),
        "recall": covered(near_data, near_drawn),
    }


def covered(points: Tensor, by: Tensor) -> float:
    """Share of points ``(n, d)`` within the distance of a point of ``by (m, d)`` to its third neighbour.

    Kynkäänniemi et al. 2019, arXiv:1904.06991, eq. 1 and 2: precision of samples covered by data, recall the reverse.
    """
    radii = torch.cdist(by, by).kthvalue(NEIGHBOURS + 1, dim=1).values  # the nearest is the point itself
    return float((torch.cdist(points, by) <= radii).any(dim=1).double().mean())


def _pixels(images: Tensor) -> Tensor:
    return images.flatten(1).double()
