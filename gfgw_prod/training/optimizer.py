"""AdamW (Loshchilov and Hutter 2019) over named parameters, replicated or sharded.

This calls torch's functional form on each rank's own shard. Moments have their parameters' names in the checkpoint, and
a start does not import the compiler stack, as ``torch.optim.Optimizer`` does on first use.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from gfgw_prod.distributed.shards import local


class AdamW:
    """Updates the parameters of ``module`` as they are laid out now.

    Attributes:
        parameters: by name.
        moments: ``exp_avg`` and ``exp_avg_sq`` by name of every parameter, laid out as those are.
    """

    def __init__(self, module: nn.Module, *, betas: tuple[float, float], weight_decay: float, eps: float = 1e-8):
        self._betas, self._weight_decay, self._eps = betas, weight_decay, eps
        self.parameters = dict(module.named_parameters())
        self.moments: dict[str, dict[str, Tensor]] = {
            moment: {name: torch.zeros_like(p).detach() for name, p in self.parameters.items()}
            for moment in ("exp_avg", "exp_avg_sq")
        }

    @torch.no_grad()
    def step(self, step: int, lr: float) -> None:
        """Update the parameters from their ``.grad``, which is then dropped.

        Args:
            step: steps of the run before this one, skipped ones included, for the bias correction.
        """
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        assert len(gradients) == len(self.parameters), "every parameter takes part in every step"
        adamw(
            [local(p) for p in self.parameters.values()],
            [local(g) for g in gradients],
            [local(m) for m in self.moments["exp_avg"].values()],
            [local(m) for m in self.moments["exp_avg_sq"].values()],
            [],
            list(torch.full((len(gradients),), float(step), device=gradients[0].device).unbind()),
            # On a CPU the fused kernel's result depends on where in its shard a number stands.
            fused=gradients[0].device.type == "cuda",
            amsgrad=False,
            beta1=self._betas[0],
            beta2=self._betas[1],
            lr=lr,
            weight_decay=self._weight_decay,
            eps=self._eps,
            maximize=False,
        )
        self.drop_gradients()

    def drop_gradients(self) -> None:
        """Drop the parameters' ``.grad``."""
        for parameter in self.parameters.values():
            parameter.grad = None
