"""What features of a network that has seen the world are worth: EfficientNet-Lite0 on patches of two photographs."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn import functional as F

from benchmarks.frozen import LITE0, write_lite0
from gfgw_prod.data.sources import load_table
from gfgw_prod.evaluation.distances import frechet_distance, moments_of
from gfgw_prod.evaluation.spaces import Space, WeightFiles, build_space
from gfgw_prod.features.extractors import NetworkFeatures, PixelFeatures, build_extractor
from gfgw_prod.sampling.pictures import levels_of
from gfgw_prod.settings.data import DataSettings
from gfgw_prod.settings.networks import FeatureSettings

SIDE = 64
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lite0(tmp_path_factory.mktemp("lite0"))


@pytest.fixture(scope="module")
def extractor(weights: Path) -> NetworkFeatures:
    settings = FeatureSettings(extractor="timm", network=LITE0, weights=weights, image_size=SIDE)
    built = build_extractor(settings, (3, SIDE, SIDE))
    assert isinstance(built, NetworkFeatures)
    return built


@pytest.fixture(scope="module")
def patches() -> tuple[Tensor, Tensor]:
    """Patches of China and of a flower that do not overlap, ``(n, 3, 64, 64)`` in [-1, 1], and which is which."""
    table = load_table(DataSettings(source="photos", image_size=SIDE))
    rows, columns = (427 - SIDE) // (SIDE // 2) + 1, (640 - SIDE) // (SIDE // 2) + 1  # of patches that overlap by half
    row, column = torch.arange(len(table)) % (rows * columns) // columns, torch.arange(len(table)) % columns
    apart = (row % 2 == 0) & (column % 2 == 0)
    return table.rows(torch.arange(len(table)))[apart], table.labels[apart]


@torch.no_grad()
def test_weights_classify_the_flower_as_a_daisy(weights: Path) -> None:
    network = timm.create_model(LITE0).eval()
    network.load_state_dict(load_file(weights), strict=False)
    flower = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None, :, :, 106:533]
    images = F.interpolate(flower.float() / 127.5 - 1, (224, 224), mode="bilinear", antialias=True)
    assert network(images).argmax() == 985  # of ImageNet's classes


@torch.no_grad()
def test_nearest_neighbours_are_of_the_same_class_more_often_than_in_pixels(
    extractor: NetworkFeatures, patches: tuple[Tensor, Tensor]
) -> None:
    images, labels = patches

    def share(features: Tensor) -> float:
        similar = (features @ features.T).fill_diagonal_(-1)
        return float((labels[similar.argmax(dim=1)] == labels).float().mean())

    assert share(PixelFeatures((3, SIDE, SIDE))(images)) < 0.9
    assert share(extractor(images)) > 0.97


def test_gradients_through_the_network_move_an_image_towards_another(
    extractor: NetworkFeatures, patches: tuple[Tensor, Tensor]
) -> None:
    images, labels = patches
    start, goal = images[labels == 0][:4], extractor(images[labels == 1][20:24])
    moved = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([moved], lr=0.02)
    before = (extractor(start) * goal).sum(dim=1)
    for _ in range(15):
        optimizer.zero_grad()
        (1 - (extractor(moved) * goal).sum(dim=1)).sum().backward()
        optimizer.step()
    after = (extractor(moved) * goal).sum(dim=1)
    assert (after > before + 0.3).all()
    with torch.no_grad():
        bank = extractor(images)
        assert (labels[(extractor(start) @ bank.T).argmax(dim=1)] == 0).all()
        assert (labels[(extractor(moved) @ bank.T).argmax(dim=1)] == 1).all()


@torch.no_grad()
def test_distance_orders_blurred_noisy_and_mixed_up_sets(weights: Path, patches: tuple[Tensor, Tensor]) -> None:
    images, labels = patches
    space: Space = build_space(f"timm:{LITE0}@{SIDE}", WeightFiles({f"timm:{LITE0}": weights}), (3, SIDE, SIDE))
    data = moments_of(space(levels_of(images)))

    def distance(changed: Tensor) -> float:
        return frechet_distance(moments_of(space(levels_of(changed))), data)

    def blurred(factor: int) -> Tensor:
        return F.interpolate(F.avg_pool2d(images, factor), (SIDE, SIDE), mode="bilinear")

    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    mixed = images.clone()
    mixed[labels == 0] = images[labels == 1]  # one class in place of the other
    few = images.clone()
    few[::10] = images[1::10]
    assert distance(images) == pytest.approx(0, abs=1e-6)
    assert 0 < distance(few) < distance(blurred(2)) < distance(blurred(4)) < distance(blurred(8))
    assert distance(images + 0.05 * noise) < distance(images + 0.2 * noise) < distance(images + 0.5 * noise)
    assert distance(few) < distance(mixed)
