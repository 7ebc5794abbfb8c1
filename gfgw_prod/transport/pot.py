"""The same coupling by Python Optimal Transport (POT), the reference implementation: dense, on the CPU, slow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gfgw_prod.resilience.exit_codes import UserError
from gfgw_prod.transport.fgw import Status


@dataclass(frozen=True)
class DensePlan:
    """A coupling matrix ``(n, N)``."""

    matrix: Tensor
    status: Status

    def dense(self) -> Tensor:
        return self.matrix

    def conditional(self) -> Tensor:
        """``T_ij / p_i``, each row a distribution over columns, ``(n, N)``."""
        return self.matrix / self.matrix.sum(dim=1, keepdim=True).clamp_min(torch.finfo(self.matrix.dtype).tiny)

    def argmax(self) -> Tensor:
        """Each row's heaviest column, ``(n,)``."""
        return self.matrix.argmax(dim=1)

    def sample(self, uniforms: Tensor) -> Tensor:
        """A column per row drawn from ``T_ij / p_i`` by inverting its distribution at ``uniforms`` ``(n,)``."""
        cumulative = self.conditional().double().cumsum(dim=1)
        thresholds = uniforms.to(cumulative)[:, None] * cumulative[:, -1:]
        return torch.searchsorted(cumulative, thresholds, right=True)[:, 0].clamp_max(self.matrix.shape[1] - 1)


def pot_plan(
    x: Tensor,
    y: Tensor,
    p: Tensor,
    q: Tensor,
    *,
    structure_weight: float,
    epsilon: float,
    max_outer_iterations: int,
    max_inner_iterations: int,
    tolerance: float,
) -> DensePlan:
    """Entropic FGW of unit rows ``x (n, d)`` and ``y (N, d)`` by POT's projected gradient in float64."""
    import ot

    rows, columns, row_mass, column_mass = (tensor.detach().cpu().double() for tensor in (x, y, p, q))
    row_mass, column_mass = row_mass / row_mass.sum(), column_mass / column_mass.sum()  # float32 sums miss 1 by an ulp
    cost = 1 - rows @ columns.T
    stop = tolerance / len(columns) ** 0.5  # POT stops on an L2 error; the status speaks of L1
    log: dict[str, Any]
    if structure_weight == 0:
        matrix, log = ot.sinkhorn(
            row_mass,
            column_mass,
            cost,
            epsilon,
            method="sinkhorn_log",
            numItermax=max_inner_iterations,
            stopThr=stop,
            warn=False,
            log=True,
        )
        outer, inner = 1, int(log.get("niter", max_inner_iterations))
    else:
        matrix, log = ot.gromov.entropic_fused_gromov_wasserstein(
            cost,
            1 - rows @ rows.T,
            1 - columns @ columns.T,
            row_mass,
            column_mass,
            loss_fun="square_loss",
            epsilon=epsilon,
            alpha=structure_weight,
            max_iter=max_outer_iterations,
            tol=tolerance,
            numItermax=max_inner_iterations,
            stopThr=stop,
            warn=False,
            log=True,
        )
        # POT records its plan's change every tenth iteration and does not say how many inner ones it made.
        outer, inner = min(10 * max(len(log["err"]), 1), max_outer_iterations), max_inner_iterations
    if not bool(torch.isfinite(matrix).all()) or float(matrix.sum()) < 0.5:
        raise UserError(f"transport.epsilon {epsilon:g} is too small for transport.backend pot; raise it or use native")
    error = float((matrix.sum(dim=1) - row_mass).abs().sum() + (matrix.sum(dim=0) - column_mass).abs().sum())
    status = Status(error <= tolerance, outer, inner, error)
    return DensePlan(matrix.to(x), status)
