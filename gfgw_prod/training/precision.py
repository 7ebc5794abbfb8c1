"""Arithmetic of the networks: autocast, TF32, the loss scale that fp16 needs, compiled kernels.

Weights, summed gradients and averages stay float32.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gfgw_prod.distributed.arithmetic import tf32
from gfgw_prod.distributed.reduction import scale_gradients
from gfgw_prod.generator import unet
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.training import PrecisionName

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
FIRST_SCALE, LEAST_SCALE, MOST_SCALE = 2.0**16, 1.0, 2.0**24
GROWS_AFTER = 2000  # steps without an overflow
# What autocast casts the weights of. Other layers may compute with theirs first.
CAST_LAYERS: set[type[nn.Module]] = {nn.Linear, nn.Conv2d, unet.Linear, unet.Conv2d}
NEWEST_TO_COMPILE = (3, 14) if torch.__version__ >= "2.10" else (3, 13)  # Python that this torch compiles for


class _Cast(torch.autograd.Function):
    """Casts tensors, and their gradients back; on a GPU in one launch, where a cast of each would take hundreds."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtype = tensors[0].dtype
        return _cast(tensors, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_cast(gradients, ctx.dtype)


def _cast(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    result = tuple(torch.empty_like(tensor, dtype=dtype) for tensor in tensors)
    torch._foreach_copy_(result, tensors)
    return result


_Weights = list[tuple[nn.Module, str, Tensor]]  # layers, with the names and values of their weights


def _weights_by_block(network: nn.Module, kinds: set[type[nn.Module]]) -> list[_Weights]:
    """The weights of layers of these kinds; those of one parent together."""
    groups: list[_Weights] = [
        [
            (layer, name, weight)
            for layer in parent.children()
            if type(layer) in kinds
            for name, weight in layer.named_parameters(recurse=False)
            if not isinstance(weight, DTensor)
        ]
        for parent in network.modules()
    ]
    return [group for group in groups if group]


class Precision:
    """Autocast for the networks, and a power of two by which losses are multiplied before the backward pass.

    In fp16 gradients below 6e-8 vanish and those above 65,504 overflow. An overflow halves the
    scale, ``GROWS_AFTER`` steps without one double it (Micikevicius et al. 2018, arXiv:1710.03740). A power of two
    changes no digit of a number. The others have the scale 1.

    TF32 is on in the passes of tf32 alone: features of the bank and of evaluation, and couplings, are float32.
    """

    def __init__(self, kind: PrecisionName, device: torch.device):
        self._dtype, self._tf32, self._device = DTYPES.get(kind), kind == "tf32", device
        self._scaled = kind == "fp16"
        self._state = torch.tensor([FIRST_SCALE if self._scaled else 1.0, 0.0], dtype=torch.float64)

    @property
    def scale(self) -> float:
        """The loss scale."""
        return float(self._state[0])

    def autocast(self) -> AbstractContextManager[object]:
        """Context of one pass. Casts of weights are not cached: a pass uses each once (see ``cast_weights``)."""
        if self._tf32:
            return tf32()
        enabled = self._dtype is not None
        return torch.autocast(self._device.type, self._dtype, enabled=enabled, cache_enabled=False)

    def backward(self, loss: Tensor, weight: float) -> None:
        """Make the backward pass of a loss ``()`` times its weight and the scale."""
        with tf32() if self._tf32 else nullcontext():
            (loss * (weight * self.scale)).backward()

    @contextmanager
    def cast_weights(self, *networks: nn.Module, by_block: bool = False) -> Iterator[None]:
        """Cast once, for all passes made inside the body, the weights that would be cast in each of them.

        Layers use the casts in place of their parameters, which remain what ``parameters()`` returns and what gradients
        are added to. FSDP has whole weights during a pass only; autocast casts those.

        Args:
            by_block: have gradients ready early in the backward pass, so that DDP can send them during its rest.
        """
        kinds = {*CAST_LAYERS, unet.GroupNorm} if self._device.type == "cuda" else CAST_LAYERS
        groups: list[_Weights] = []
        for network in networks if self._dtype is not None else ():
            blocks = _weights_by_block(network, kinds)
            whole = self._device.type == "cuda" and not by_block  # fewer launches
            groups += [list(chain.from_iterable(blocks))] if whole and blocks else blocks
        for group in groups:
            casts = _Cast.apply(self._dtype, *(weight for _, _, weight in group))  # type: ignore[no-untyped-call]
            for (layer, name, _), cast in zip(group, casts, strict=True):
                vars(layer)[name] = cast  # found before the parameter
        try:
            yield
        finally:
            for layer, name, _ in chain.from_iterable(groups):
                vars(layer).pop(name, None)  # two parents may share a layer

    def unscale(self, parameters: Iterable[Tensor]) -> None:
        """Divide the gradients of a backward pass by the scale."""
        if self._scaled:
            scale_gradients(parameters, 1 / self.scale)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""
        return {"scale": self._state}

    def record_good_step(self) -> None:
        """Count a step without overflow."""
        if self._scaled:
            self._state[1] += 1
            if self._state[1] >= GROWS_AFTER:
                self._state[0], self._state[1] = min(self.scale * 2, MOST_SCALE), 0

    def lower_scale(self) -> bool:
        """Halve the scale after a gradient that is not finite. False if the scale cannot be the cause."""
        if not self._scaled or self.scale <= LEAST_SCALE:
            return False
        self._state[0], self._state[1] = self.scale / 2, 0
        return True


def compile_networks(networks: Iterable[nn.Module]) -> None:
    """Compile networks, in place, when they are first called.

    Raises:
        UserError: on a Python that torch does not compile for.
    """
    if sys.version_info[:2] > NEWEST_TO_COMPILE:
        newest = ".".join(map(str, NEWEST_TO_COMPILE))
        raise UserError(f"train.compile true needs Python {newest} or older with torch {torch.__version__}; use false")
    import torch._dynamo as dynamo

    # A U-Net has blocks of more shapes than the default limit allows, each with and without gradient and dropout.
    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, 64)
    dynamo.config.optimize_ddp = False  # it would split what is compiled by DDP's buckets, and one rank has none
    for network in networks:
        network.compile(dynamic=False)
