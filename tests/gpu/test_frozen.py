"""Frozen networks compute in fewer launches on a GPU, and the same up to rounding."""

from __future__ import annotations

import copy
from collections.abc import Callable

import lpips
import pytest
import timm
import torch
from torch import Tensor, nn

from gfgw_prod.features.extractors import NetworkFeatures
from gfgw_prod.features.networks import Network
from gfgw_prod.losses.perceptual import PerceptualLoss
from gfgw_prod.settings.networks import DINOV2

from .driver import pretended_gpu
from .pretended import CUDA


def pictures(seed: int) -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def dinov2() -> NetworkFeatures:
    backbone = timm.create_model(DINOV2, pretrained=False, num_classes=0, img_size=28)
    for name, parameter in backbone.named_parameters():
        if name.endswith("gamma"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    return NetworkFeatures(Network(DINOV2, 28), backbone)


def vgg() -> PerceptualLoss:
    return PerceptualLoss(lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False))


def features(network: nn.Module, images: Tensor) -> Tensor:
    return network(images)[:, :10].sum()


def distance(network: nn.Module, images: Tensor) -> Tensor:
    return network(images, pictures(2).to(images.device))


@pytest.mark.parametrize(
    ("make", "value", "most_launches"), [(dinov2, features, 380), (vgg, distance, 230)], ids=["DINOv2", "LPIPS"]
)
def test_value_and_gradient_are_the_cpus(
    make: Callable[[], nn.Module], value: Callable[[nn.Module, Tensor], Tensor], most_launches: int
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make()
    images = pictures(1).requires_grad_()
    expected = value(network, images)
    expected.backward()
    with pretended_gpu() as gpu:
        moved = copy.deepcopy(network).to(CUDA)
        if isinstance(moved, NetworkFeatures):
            moved.fold_scales()
        there = pictures(1).to(CUDA).requires_grad_()
        value(moved, there)  # copies constants once
        before = gpu.counts.copy()
        found = value(moved, there)
        found.backward()
        assert gpu.counts.since(before).launches.total() <= most_launches
        assert there.grad is not None
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(there.grad.cpu(), images.grad, rtol=1e-3, atol=1e-6)
