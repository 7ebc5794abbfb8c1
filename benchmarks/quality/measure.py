"""Quality of samples: Fréchet distances, precision and recall in principal components of pixels, memorisation."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.frozen import LITE0, write_lite0
from gfgw_prod.data.sources import Table
from gfgw_prod.evaluation.distances import frechet_distance, moments_of
from gfgw_prod.evaluation.spaces import WeightFiles, build_space
from gfgw_prod.sampling.pictures import draw_samples, levels_of

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
    data = table.rows(torch.arange(len(table)))
    return metrics(_pixels(images), _pixels(data)) | {"network": _network_distance(images[:2000], data)}


def quality_of_halves(table: Table) -> dict[str, float]:
    """The same metrics of one random half of the data against the other."""
    images = table.rows(torch.randperm(len(table), generator=torch.Generator().manual_seed(0)))
    data = _pixels(images)
    return metrics(data[::2], data[1::2]) | {"network": _network_distance(images[::2], images[1::2])}


def metrics(generated: Tensor, data: Tensor) -> dict[str, float]:
    """Metrics of generated rows ``(n, d)`` against the data ``(m, d)``, by name."""
    axes = torch.linalg.svd(data - data.mean(dim=0), full_matrices=False).Vh[:COMPONENTS]
    # As many samples as data, because the radii depend on the number of points.
    near_generated, near_data = generated[: len(data)] @ axes.T, data @ axes.T
    return {
        "frechet": frechet_distance(moments_of(generated), moments_of(data)),
        "precision": covered(near_generated, near_data),
        "recall": covered(near_data, near_generated),
        "memorised": memorised(near_generated, near_data),
    }


def covered(points: Tensor, by: Tensor) -> float:
    """Share of points ``(n, d)`` that lie within the third-neighbour radius of some point of ``by``, ``(m, d)``.

    Kynkäänniemi et al. 2019, arXiv:1904.06991, eq. 1 and 2. Precision is the share of samples covered by data, recall
    the reverse.
    """
    radii = torch.cdist(by, by).kthvalue(NEIGHBOURS + 1, dim=1).values  # the nearest is the point itself
    return float((torch.cdist(points, by) <= radii).any(dim=1).double().mean())


def memorised(points: Tensor, data: Tensor) -> float:
    """Share of points that are nearer to a datum than any other datum is (Alaa et al. 2022: one minus authenticity)."""
    nearest = torch.cdist(points, data).min(dim=1)
    others = torch.cdist(data, data).fill_diagonal_(torch.inf).amin(dim=1)
    return float((nearest.values < others[nearest.indices]).double().mean())


@torch.no_grad()
def _network_distance(first: Tensor, second: Tensor) -> float:
    """Fréchet distance of images in EfficientNet-Lite0 at 64 pixels, a network that no method here is trained on."""
    with tempfile.TemporaryDirectory() as place:
        files = WeightFiles({f"timm:{LITE0}": write_lite0(Path(place))})
        space = build_space(f"timm:{LITE0}@64", files, (3, 64, 64))
    rows = [torch.cat([space(levels_of(cell)) for cell in images.split(64)]) for images in (first, second)]
    return frechet_distance(*map(moments_of, rows))


def _pixels(images: Tensor) -> Tensor:
    return images.flatten(1).double()
