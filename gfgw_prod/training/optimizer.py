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
    """``moments``: ``exp_avg`` and ``exp_avg_sq`` by name of every parameter of ``module``, laid out as those are."""

    def __init__(self, module: nn.Module, *, betas: tuple[float, float], weight_decay: float, eps: float = 1e-8):
        self._module, self._betas, self._weight_decay, self._eps = module, betas, weight_decay, eps
        self.moments: dict[str, dict[str, Tensor]] = {
            moment: {name: torch.zeros_like(p).detach() for name, p in module.named_parameters()}
            for moment in ("exp_avg", "exp_avg_sq")
        }

    @torch.no_grad()
    def step(self, step: int, lr: float) -> None:
        """Update the parameters from their ``.grad``, which is then dropped.

        Args:
            step: steps of the run before this one, skipped ones included, for the bias correction.
        """
        parameters = dict(self._module.named_parameters())
        gradients = [p.grad for p in parameters.values() if p.grad is not None]
        assert len(gradients) == len(parameters), "every parameter takes part in every step"
        adamw(
            [local(p) for p in parameters.values()],
            [local(g) for g in gradients],
            [local(m) for m in self.moments["exp_avg"].values()],
            [local(m) for m in self.moments["exp_avg_sq"].values()],
            [],
            list(torch.full((len(parameters),), float(step), device=gradients[0].device).unbind()),
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
        self._module.zero_grad(set_to_none=True)
