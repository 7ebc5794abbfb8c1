"""Quality of samples: Fréchet distance of raw pixels, precision and recall in their principal components."""

from __future__ import annotations

import torch
from torch import Tensor

from gfgw_prod.data.sources import Table
from gfgw_prod.evaluation.distances import frechet_distance, moments_of
from gfgw_prod.sampling.pictures import draw_samples

SAMPLES, NOISE_SEED = 5_000, 0  # the same noise and classes for every run
COMPONENTS, NEIGHBOURS = 32, 3


def quality(sampler: torch.nn.Module, table: Table) -> dict[str, float]:
    """Metrics of one-step samples by name."""
    images, _ = draw_samples(
        sampler,
        table.image_shape,
        range(table.num_classes),
        count=SAMPLES,
        seed=NOISE_SEED,
        stream="quality",
        device=torch.device("cpu"),
    )
    return metrics(_pixels(images), _pixels(table.rows(torch.arange(len(table)))))


def quality_of_halves(table: Table) -> dict[str, float]:
    """The same metrics of one random half of the data against the other."""
    data = _pixels(table.rows(torch.randperm(len(table), generator=torch.Generator().manual_seed(0))))
    return metrics(data[::2], data[1::2])


def metrics(generated: Tensor, data: Tensor) -> dict[str, float]:
    """Metrics of generated rows ``(n, d)`` against the data ``(m, d)``, by name."""
    axes = torch.linalg.svd(data - data.mean(dim=0), full_matrices=False).Vh[:COMPONENTS]
    # As many samples as data, because the radii depend on the number of points.
    near_generated, near_data = generated[: len(data)] @ axes.T, data @ axes.T
    return {
        "frechet": frechet_distance(moments_of(generated), moments_of(data)),
        "precision": covered(near_generated, near_data),
        "recall": covered(near_data, near_generated),
    }


def covered(points: Tensor, by: Tensor) -> float:
    """Share of points ``(n, d)`` that lie within the third-neighbour radius of some point of ``by``, ``(m, d)``.

    Kynkäänniemi et al. 2019, arXiv:1904.06991, eq. 1 and 2. Precision is the share of samples covered by data, recall
    the reverse.
    """
    radii = torch.cdist(by, by).kthvalue(NEIGHBOURS + 1, dim=1).values  # the nearest is the point itself
    return float((torch.cdist(points, by) <= radii).any(dim=1).double().mean())


def _pixels(images: Tensor) -> Tensor:
    return images.flatten(1).double()
