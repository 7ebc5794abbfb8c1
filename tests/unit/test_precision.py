"""Autocast and the loss scale of half precision."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from gfgw_prod.distributed.arithmetic import arithmetic_restored, set_tf32
from gfgw_prod.generator.unet import UNetBlock
from gfgw_prod.training.precision import FIRST_SCALE, GROWS_AFTER, LEAST_SCALE, Precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
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


def test_scale_is_halved_by_an_overflow_and_doubled_after_many_steps_without() -> None:
    precision = Precision("fp16", CPU)
    assert precision.lower_scale()
    assert precision.scale == FIRST_SCALE / 2
    for _ in range(GROWS_AFTER - 1):
        precision.record_good_step()
    assert precision.scale == FIRST_SCALE / 2
    precision.record_good_step()
    assert precision.scale == FIRST_SCALE


def test_least_scale_is_not_halved() -> None:
    precision = Precision("fp16", CPU)
    while precision.scale > LEAST_SCALE:
        assert precision.lower_scale()
    assert not precision.lower_scale()


@pytest.mark.parametrize("kind", ["fp32", "tf32", "bf16"])
def test_other_precisions_have_no_scale(kind: str) -> None:
    precision = Precision(kind, CPU)
    precision.record_good_step()
    assert precision.scale == 1
    assert not precision.lower_scale()


def test_unscaled_gradients_are_those_of_the_loss_itself_to_the_bit() -> None:
    precision = Precision("fp16", CPU)
    plain, scaled = (torch.linspace(-3, 3, 50).requires_grad_() for _ in range(2))
    plain.pow(3).sum().backward()
    (scaled.pow(3).sum() * precision.scale).backward()
    precision.unscale([scaled])
    assert plain.grad is not None
    assert scaled.grad is not None
    assert torch.equal(plain.grad, scaled.grad)


def test_state_is_restored_from_a_checkpoint() -> None:
    precision, resumed = Precision("fp16", CPU), Precision("fp16", CPU)
    precision.lower_scale()
    for name, tensor in resumed.tensors().items():
        tensor.copy_(precision.tensors()[name])
    assert resumed.scale == FIRST_SCALE / 2


@pytest.mark.parametrize("kind", ["fp32", "bf16", "fp16"])
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
