"""AdamW (Loshchilov and Hutter 2019) over named parameters, replicated or sharded.

torch's functional form on each rank's own shard: the moments carry their parameters' names into the checkpoint, and
the compiler stack, which ``torch.optim.Optimizer`` imports on first use, does not slow every start.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from gfgw_prod.distributed.shards import local


class AdamW:
    """Keeps first and second moments of every parameter of ``module``, laid out as the parameters are.

    Attributes:
        moments: ``exp_avg`` and ``exp_avg_sq`` by parameter name.
        steps: updates made, for the bias correction.
    """

    def __init__(self, module: nn.Module, *, betas: tuple[float, float], weight_decay: float, eps: float = 1e-8):
        self._module, self._betas, self._weight_decay, self._eps = module, betas, weight_decay, eps
        self.steps = 0
        self.moments: dict[str, dict[str, Tensor]] = {
            moment: {name: torch.zeros_like(p).detach() for name, p in module.named_parameters()}
            for moment in ("exp_avg", "exp_avg_sq")
        }

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update from the parameters' ``.grad``, which is then dropped."""
        parameters = dict(self._module.named_parameters())
        gradients = [p.grad for p in parameters.values() if p.grad is not None]
        assert len(gradients) == len(parameters), "every parameter takes part in every step"
        adamw(
            [local(p) for p in parameters.values()],
            [local(g) for g in gradients],
            [local(m) for m in self.moments["exp_avg"].values()],
            [local(m) for m in self.moments["exp_avg_sq"].values()],
            [],
            list(torch.full((len(parameters),), float(self.steps), device=gradients[0].device).unbind()),
            # On a CPU its result for a number depends on where in the tensor, and so in which shard, it stands.
            fused=gradients[0].device.type == "cuda",
            amsgrad=False,
            beta1=self._betas[0],
            beta2=self._betas[1],
            lr=lr,
            weight_decay=self._weight_decay,
            eps=self._eps,
            maximize=False,
        )
        self.steps += 1
        self._module.zero_grad(set_to_none=True)
