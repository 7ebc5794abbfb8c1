"""Quality of samples: Fréchet distances, precision and recall in principal components of pixels, memorisation."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.frozen import LITE0, write_lite0
from gfgw_prod.data.sources import Table
from gfgw_prod.evaluation.distances import Moments, frechet_distance, moments_of
from gfgw_prod.evaluation.spaces import Space, WeightFiles, build_space
from gfgw_prod.sampling.pictures import draw_samples, levels_of

SAMPLES, NOISE_SEED = 5_000, 0  # the same noise and classes for every run
NETWORK_SAMPLES, NETWORK_SIDE = 1_000, 64
COMPONENTS, NEIGHBOURS = 32, 3
MOST_NEIGHBOURS = 5_000  # points of either side in precision and recall, whose radii depend on the number of points
BLOCK = 1_000  # rows of distances held at once


class Reference:
    """What samples are compared with: a set of images ``(n, c, h, w)`` and the features of it that every run needs."""

    def __init__(self, images: Tensor):
        images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
        self._images, pixels = images, _pixels(images)
        self._pixel_moments = moments_of(pixels)
        centred = pixels - pixels.mean(dim=0)
        self._axes = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -COMPONENTS:]
        self._all = pixels @ self._axes
        self._near = self._all[:MOST_NEIGHBOURS]
        self._radii, self._apart = radii(self._near), nearest(self._all, self._all, others=True)[0]

    def metrics(self, images: Tensor) -> dict[str, float]:
        """Metrics of other images in pixels, by name."""
        pixels = _pixels(images)
        near = (pixels @ self._axes)[: len(self._near)]
        distances, owners = nearest(near, self._all)
        return {
            "frechet": frechet_distance(moments_of(pixels), self._pixel_moments),
            "precision": covered(near, self._near, self._radii),
            "recall": covered(self._near, near, radii(near)),
            "memorised": float((distances < self._apart[owners]).double().mean()),
        }

    def in_network(self, images: Tensor) -> dict[str, float]:
        """The Fréchet distance of other images in a network's features."""
        return {"network": frechet_distance(self._moments_in_network(images[:NETWORK_SAMPLES]), self._network_moments)}

    @cached_property
    def _network_moments(self) -> Moments:
        return self._moments_in_network(self._images[: 2 * NETWORK_SAMPLES])

    @torch.no_grad()
    def _moments_in_network(self, images: Tensor) -> Moments:
        return moments_of(torch.cat([_lite0()(levels_of(cell)) for cell in images.split(64)]))


@cache
def _lite0() -> Space:
    with tempfile.TemporaryDirectory() as place:
        files = WeightFiles({f"timm:{LITE0}": write_lite0(Path(place))})
        return build_space(f"timm:{LITE0}@{NETWORK_SIDE}", files, (3, NETWORK_SIDE, NETWORK_SIDE))


def quality(sampler: torch.nn.Module, table: Table, reference: Reference, *, fully: bool) -> dict[str, float]:
    """Metrics of one-step samples by name; in pixels alone if not ``fully``."""
    images, _ = draw_samples(
        sampler,
        table.image_shape,
        range(table.num_classes),
        count=SAMPLES,
        seed=NOISE_SEED,
        stream="quality",
        device=torch.device("cpu"),
    )
    return reference.metrics(images) | (reference.in_network(images) if fully else {})


def quality_of_halves(table: Table) -> Mapping[str, float]:
    """The same metrics of one random half of the data against the other: what a perfect generator could reach."""
    images = table.rows(torch.randperm(len(table), generator=torch.Generator().manual_seed(1)))
    reference = Reference(images[1::2])
    return reference.metrics(images[::2]) | reference.in_network(images[::2])


def covered(points: Tensor, by: Tensor, radii: Tensor) -> float:
    """Share of points ``(n, d)`` that lie within the radius of some point of ``by``, ``(m, d)``.

    Kynkäänniemi et al. 2019, arXiv:1904.06991, eq. 1 and 2. Precision is the share of samples covered by data, recall
    the reverse.
    """
    within = [(torch.cdist(block, by) <= radii).any(dim=1) for block in points.split(BLOCK)]
    return float(torch.cat(within).double().mean())


def radii(points: Tensor) -> Tensor:
    """Distance of each point ``(n, d)`` to its third neighbour."""
    # The nearest is the point itself.
    found = [torch.cdist(block, points).kthvalue(NEIGHBOURS + 1, dim=1).values for block in points.split(BLOCK)]
    return torch.cat(found)


def nearest(points: Tensor, data: Tensor, *, others: bool = False) -> tuple[Tensor, Tensor]:
    """Distance of each point ``(n, d)`` to the nearest datum, and its index; with ``others`` not to itself.

    A sample nearer to a datum than any other datum is counts as memorised (Alaa et al. 2022: one minus authenticity).
    """
    distances, owners = [], []
    for first, block in zip(range(0, len(points), BLOCK), points.split(BLOCK), strict=True):
        apart = torch.cdist(block, data)
        if others:
            apart[:, first:].fill_diagonal_(torch.inf)
        found = apart.min(dim=1)
        distances.append(found.values)
        owners.append(found.indices)
    return torch.cat(distances), torch.cat(owners)


def _pixels(images: Tensor) -> Tensor:
    return images.flatten(1).double()
