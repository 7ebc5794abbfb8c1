"""Exponential moving average (EMA) of the generator's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gfgw_prod.distributed.shards import local


class Ema:
    """EMA of every parameter of ``module``, sharded as the parameters are now.

    The network has no persistent buffers, so its parameters are its whole state. ``tensors`` is keyed by their names.
    """

    def __init__(self, module: nn.Module):
        self._module, self._parameters = module, dict(module.named_parameters())
        self.tensors: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._parameters.items()}

    def end(self) -> None:
        """Free the module. The average of its parameters may still be updated."""
        del self._module

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Set ``ema <- decay * ema + (1 - decay) * weights``."""
        averages = [local(self.tensors[name]) for name in self._parameters]
        torch._foreach_lerp_(averages, [local(each) for each in self._parameters.values()], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """Give the module its averaged weights inside the body, and its own again afterwards."""
        self._swap()
        try:
            yield self._module
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            mine, average = local(parameter), local(self.tensors[name])
            held = mine.clone()
            mine.copy_(average)
            average.copy_(held)
