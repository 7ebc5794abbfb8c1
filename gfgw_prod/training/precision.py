"""How the networks of a step compute: autocast, the loss scale that half precision needs, compiled kernels.

Weights, gradients that meet others, and averages stay float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor, nn

from gfgw_prod.distributed.reduction import scale_gradients

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
FIRST_SCALE, LEAST_SCALE, MOST_SCALE = 2.0**16, 1.0, 2.0**24
GROWS_AFTER = 2000  # steps without an overflow


class Precision:
    """Autocast for the networks, and a power of two by which losses are multiplied before the backward pass.

    Gradients of fp16 below 6e-8 are lost, and those above 65,504 are infinite. The scale keeps them between: it is
    halved by a step whose gradient overflows, and doubled after ``GROWS_AFTER`` steps that did not (Micikevicius et al.
    2018, arXiv:1710.03740). Being a power of two it leaves no trace in the numbers themselves. Other precisions have
    the scale 1.
    """

    def __init__(self, kind: Literal["fp32", "bf16", "fp16"], device: torch.device):
        self._dtype, self._device = DTYPES.get(kind), device
        self._scaled = kind == "fp16"
        self._state = torch.tensor([FIRST_SCALE if self._scaled else 1.0, 0.0], dtype=torch.float64)

    @property
    def scale(self) -> float:
        """The present loss scale."""
        return float(self._state[0])

    def autocast(self) -> AbstractContextManager[object]:
        """Around one pass. Casts of weights are not kept: within a pass each is used once."""
        enabled = self._dtype is not None
        return torch.autocast(self._device.type, self._dtype, enabled=enabled, cache_enabled=False)

    def unscale(self, parameters: Iterable[Tensor]) -> None:
        """Takes the scale out of the gradients of a backward pass."""
        if self._scaled:
            scale_gradients(parameters, 1 / self._state[0].float())

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""
        return {"scale": self._state}

    def accept(self) -> None:
        """A step counted."""
        if self._scaled:
            self._state[1] += 1
            if self._state[1] >= GROWS_AFTER:
                self._state[0], self._state[1] = min(self.scale * 2, MOST_SCALE), 0

    def loosen(self) -> bool:
        """Halves the scale after a gradient that was not finite; returns whether the scale can have been to blame."""
        if not self._scaled or self.scale <= LEAST_SCALE:
            return False
        self._state[0], self._state[1] = self.scale / 2, 0
        return True


def compile_networks(generator: nn.Module, blocks: type[nn.Module], extractor: nn.Module) -> None:
    """Has the generator's blocks and the extractor compiled when they are first called, in place.

    Block by block: FSDP puts its own work between them, and blocks of one shape share their kernels.
    """
    import torch._dynamo

    # A U-Net's blocks have more shapes than the default allows, each with and without gradient and dropout.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    for module in generator.modules():
        if isinstance(module, blocks):
            module.compile(dynamic=False)
    extractor.compile(dynamic=False)
