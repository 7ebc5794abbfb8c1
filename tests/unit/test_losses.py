"""Loss terms by their formulas, and where their gradients go."""

import math

import pytest
import torch
from torch import nn

from gfgw_prod.features.extractors import build_extractor
from gfgw_prod.losses.energy import BatchFeatures, energy_loss
from gfgw_prod.losses.feature import feature_loss
from gfgw_prod.losses.flow import check_scales, flow_loss
from gfgw_prod.losses.structure import structure_loss
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.networks import FeatureSettings

from .. import features


def unit_rows(rows: int, dim: int, seed: int) -> torch.Tensor:
    return features.unit_rows(rows, dim, seed, torch.float32)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_losses_of_equal_inputs_are_zero() -> None:
    images, features = noise(4, 1, 8, 8), unit_rows(4, 6, 0)
    assert flow_loss(images, images, huber=0.03, scales=3) == 0
    assert structure_loss(features, features) == 0
    assert float(feature_loss(features, features)) == pytest.approx(0, abs=1e-6)


def test_flow_loss_is_the_hand_formula() -> None:
    predicted, target = noise(2, 1, 4, 4, seed=1), noise(2, 1, 4, 4, seed=2)
    total = 0.0
    for error in (predicted - target).tolist():
        fine = error[0]
        coarse = [
            [sum(fine[2 * i + a][2 * j + b] for a in (0, 1) for b in (0, 1)) / 4 for j in range(2)] for i in range(2)
        ]
        for grid in (fine, coarse):
            values = [value for row in grid for value in row]
            dimension, squares = len(values), sum(value * value for value in values)
            c = 0.5 * math.sqrt(dimension)
            total += (math.sqrt(squares + c * c) - c) / math.sqrt(dimension) / 4
    assert float(flow_loss(predicted, target, huber=0.5, scales=2)) == pytest.approx(total, rel=1e-5)


def test_flow_loss_is_quadratic_for_small_and_linear_for_large_errors() -> None:
    zero = torch.zeros(1, 1, 2, 2)
    small, twice = (float(flow_loss(zero + e, zero, huber=1.0, scales=1)) for e in (1e-2, 2e-2))
    large, double = (float(flow_loss(zero + e, zero, huber=1.0, scales=1)) for e in (1e4, 2e4))
    assert twice / small == pytest.approx(4, rel=1e-2)
    assert double / large == pytest.approx(2, rel=1e-2)


@pytest.mark.parametrize(("side", "scales"), [(8, 4), (32, 6), (20, 5)])
def test_scales_are_limited_by_how_often_an_image_can_be_halved(side: int, scales: int) -> None:
    check_scales(scales, (3, side, side))
    with pytest.raises(UserError, match=f"at most {scales} for {side}-pixel"):
        check_scales(scales + 1, (3, side, side))
    images = torch.zeros(1, 3, side, side)
    assert torch.isfinite(flow_loss(images, images, huber=1.0, scales=scales))


def test_feature_loss_is_2_for_opposite_and_1_for_orthogonal_rows() -> None:
    rows = unit_rows(5, 4, 0)
    assert float(feature_loss(rows, -rows)) == pytest.approx(2)
    assert float(feature_loss(torch.eye(2), torch.eye(2).flip(0))) == pytest.approx(1)


def test_gradient_passes_through_the_frozen_extractor_to_the_images() -> None:
    extractor = nn.Sequential(build_extractor(FeatureSettings(extractor="pixels"), (1, 4, 4)), nn.Linear(16, 6))
    extractor.requires_grad_(False)
    images = noise(3, 1, 4, 4).requires_grad_()
    feature_loss(nn.functional.normalize(extractor(images), dim=1), unit_rows(3, 6, 1)).backward()
    assert (images.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(parameter.grad is None for parameter in extractor.parameters())


def test_structure_loss_depends_on_distances_only() -> None:
    predicted, target = unit_rows(6, 5, 0), unit_rows(6, 5, 1)
    rotation, _ = torch.linalg.qr(noise(5, 5, seed=2))
    turned = structure_loss(predicted @ rotation, target)
    torch.testing.assert_close(turned, structure_loss(predicted, target))
    assert float(structure_loss(target @ rotation, target)) == pytest.approx(0, abs=1e-10)
    assert structure_loss(predicted, target) > 0.01


def test_structure_loss_of_two_rows() -> None:
    together, apart = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.eye(2)
    assert float(structure_loss(together, apart)) == pytest.approx(2 / 4)  # two of four entries differ by 1


@pytest.mark.parametrize("classes", [1, 3])
def test_energy_loss_is_the_hand_formula(classes: int) -> None:
    predicted, generated, matched = unit_rows(4, 5, 0), unit_rows(12, 5, 1), unit_rows(12, 5, 2)
    labels, first = torch.arange(12) % classes, 3
    total = 0.0
    for i in range(4):
        peers = [k for k in range(12) if labels[k] == labels[first + i]]
        cross = [float((predicted[i] - matched[k]).norm()) for k in peers]
        own = [float((predicted[i] - generated[k]).norm()) for k in peers if k != first + i]
        total += sum(cross) / len(cross) - sum(own) / len(own)
    found = energy_loss(predicted, BatchFeatures(generated, matched, slice(3, 7), None if classes == 1 else labels))
    assert float(found) == pytest.approx(total / 4, abs=1e-5)


def test_energy_loss_of_slots_alone_in_their_class_is_zero() -> None:
    rows = unit_rows(3, 5, 0).requires_grad_()
    loss = energy_loss(rows, BatchFeatures(unit_rows(3, 5, 1), unit_rows(3, 5, 2), slice(0, 3), torch.arange(3)))
    loss.backward()
    assert loss == 0
    assert rows.grad is not None
    assert not rows.grad.any()


def test_energy_loss_spreads_crowded_samples_as_widely_as_their_targets() -> None:
    matched = noise(256, 3)
    spread = torch.tensor(0.3, requires_grad=True)
    optimizer = torch.optim.Adam([spread], lr=0.05)
    for step in range(150):
        samples = noise(256, 3, seed=step + 1) * spread
        optimizer.zero_grad()
        energy_loss(samples, BatchFeatures(samples.detach(), matched, slice(0, 256))).backward()
        optimizer.step()
    assert spread.item() == pytest.approx(float(matched.std()), rel=0.1)


def test_energy_loss_has_a_finite_gradient_where_a_sample_equals_its_target() -> None:
    rows = unit_rows(4, 5, 0)
    predicted = rows.clone().requires_grad_()
    energy_loss(predicted, BatchFeatures(rows, rows, slice(0, 4))).backward()
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()
