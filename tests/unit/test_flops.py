"""Operations per image against a count by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gfgw_prod.features.extractors import PixelFeatures
from gfgw_prod.generator import build_generator
from gfgw_prod.settings.config import Config
from gfgw_prod.settings.reading import resolve
from gfgw_prod.training.flops import flops_per_image, peak_of
from gfgw_prod.training.objective import Objective
from gfgw_prod.training.precision import Precision

CPU = torch.device("cpu")
SHAPE, CLASSES = (1, 8, 8), 10


class Projection(nn.Module):
    """Features by one product: 2 · 64 · 5 operations forward, and as many for the gradient of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 5).requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1))


FORWARD = 2 * 64 * 5


def flops(extractor: nn.Module, **sections: dict[str, Any]) -> float:
    config: Config = resolve(sections)
    objective = Objective(config.loss, extractor, None, Precision("fp32", CPU))
    return flops_per_image(config, objective, SHAPE, CLASSES)


def by_hand(config: Config) -> tuple[int, int]:
    """Operations of the generator for one image: forward, and forward and backward.

    A layer's backward pass has a product for the weights and one for the input. The images and the embedding of the
    time need no gradient.
    """
    generator = build_generator(config.generator, SHAPE, CLASSES, 0)
    forward, backward = 0, 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal forward, backward
        own = 2 * layer.weight[0].numel() * output.numel()
        forward += own
        backward += own * (1 + inputs[0].requires_grad)

    for layer in generator.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.register_forward_hook(count)
    generator(torch.zeros(1, *SHAPE), torch.ones(1), torch.zeros(1, dtype=torch.long))
    pixels, width = 4 * 4, config.generator.model_channels * config.generator.channel_mult[-1]
    attention = 2 * 2 * pixels * pixels * width  # queries with keys, weights with values; in the lowest block
    return forward + attention, forward + backward + 3 * attention


def test_steps_at_one_train_one_pass_and_take_its_features() -> None:
    config = resolve({})
    _, trained = by_hand(config)
    assert flops(Projection(), train={"one_step_share": 1.0}) == trained + 2 * FORWARD


def test_steps_before_generate_first_or_match_by_noise() -> None:
    generated, trained = by_hand(resolve({}))
    assert flops(Projection(), train={"one_step_share": 0.0}) == generated + FORWARD + trained + 2 * FORWARD
    noise = {"stages": 2, "coupled_by": "noise"}
    assert flops(PixelFeatures(SHAPE), train={"one_step_share": 0.0}, consistency=noise) == generated + trained


def test_mean_is_over_both_kinds_of_steps() -> None:
    found = [flops(Projection(), train={"one_step_share": share}) for share in (0.0, 0.25, 1.0)]
    assert found[1] == pytest.approx(0.75 * found[0] + 0.25 * found[2])


def test_repeated_passes_do_not_count() -> None:
    assert flops(Projection(), train={"kept_passes": 0}) == flops(Projection(), train={"kept_passes": 5})


def test_peaks_are_those_of_the_precision() -> None:
    assert peak_of("NVIDIA A100-SXM4-80GB", "bf16") == 312e12
    assert peak_of("NVIDIA A100-SXM4-80GB", "fp32") == 19.5e12
    assert peak_of("NVIDIA H100 PCIe", "tf32") == 378e12
    assert peak_of("NVIDIA GeForce RTX 5090", "bf16") is None
