"""Exponential moving average of the generator's weights, sharded or replicated as the weights are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gfgw_prod.distributed.shards import local


class Ema:
    """Averages every parameter of ``module``; with FSDP the averages are shards of the same layout.

    The networks have no persistent buffers, so parameters are the whole state.
    """

    def __init__(self, module: nn.Module):
        self._module = module
        self.tensors: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in module.named_parameters()
        }

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """``ema <- decay * ema + (1 - decay) * weights``."""
        for name, parameter in self._module.named_parameters():
            local(self.tensors[name]).lerp_(local(parameter), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """The module with averaged weights inside the body, with its own again afterwards."""
        self._exchange()
        try:
            yield self._module
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._module.named_parameters():
            mine, average = local(parameter), local(self.tensors[name])
            held = mine.clone()
            mine.copy_(average)
            average.copy_(held)
