"""Autocast, and weights that are cast once a step."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from gfgw_prod.distributed.arithmetic import arithmetic_restored, set_tf32
from gfgw_prod.generator.unet import UNetBlock
from gfgw_prod.training.precision import Precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)],
)
def test_matrix_products_have_the_chosen_precision(kind: str, dtype: torch.dtype) -> None:
    with Precision(kind, CPU).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize(("kind", "on"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_tf32_is_on_in_the_passes_of_tf32_alone(kind: str, on: bool) -> None:
    def rounds() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    found = []
    weight = torch.ones((), requires_grad=True)
    weight.register_hook(lambda gradient: found.append(rounds()))
    with arithmetic_restored():
        set_tf32(False)
        precision = Precision(kind, CPU)
        with precision.autocast():
            found.append(rounds())
        precision.backward(weight * 2, weight=0.5)
        assert found == [(on, on)] * 2
        assert rounds() == (False, False)
    assert weight.grad == 1


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_weights_cast_once_give_the_gradients_of_weights_cast_in_every_pass(kind: str) -> None:
    torch.manual_seed(0)
    precision, network = Precision(kind, CPU), UNetBlock(4, 8, 6, attention=True, resample="down")
    inputs = [(torch.randn(2, 4, 8, 8), torch.randn(2, 6)) for _ in range(3)]

    def gradients(*, cast_once: bool) -> list[Tensor]:
        """Of passes that are all made before their backward passes."""
        found: list[Tensor] = []
        with precision.cast_weights(network) if cast_once else nullcontext():
            outputs = []
            for each in inputs:
                with precision.autocast():
                    outputs.append(network(*each))
            for output in outputs:
                output.float().square().sum().backward()
                found += [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
                network.zero_grad(set_to_none=True)
        return found

    once, often = gradients(cast_once=True), gradients(cast_once=False)
    assert len(once) == len(inputs) * len(list(network.parameters()))
    assert all(map(torch.equal, once, often))


def test_layers_have_their_own_weights_again_after_a_cast() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Conv2d(1, 1, 1, bias=False))
    weights, parameters = [layer.weight for layer in network], list(network.parameters())
    with Precision("bf16", CPU).cast_weights(network):
        assert [layer.weight.dtype for layer in network] == [torch.bfloat16] * 2
        assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
    assert all(layer.weight is weight for layer, weight in zip(network, weights, strict=True))
