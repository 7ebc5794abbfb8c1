"""The same coupling by Python Optimal Transport (POT), the reference: dense, on the CPU, slow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.transport.columns import Columns
from gfgw_prod.transport.coupling import Options, Start, Status
from gfgw_prod.transport.plan import normalised_entropy


@dataclass(frozen=True)
class DensePlan:
    """A coupling matrix ``(n, N)``; ``plan.Plan`` documents the methods."""

    matrix: Tensor
    status: Status

    def dense(self) -> Tensor:
        return self.matrix

    def conditional(self) -> Tensor:
        return self.matrix / self.matrix.sum(dim=1, keepdim=True).clamp_min(torch.finfo(self.matrix.dtype).tiny)

    def argmax(self) -> Tensor:
        return self.matrix.argmax(dim=1)

    def sample(self, uniforms: Tensor) -> Tensor:
        cumulative = self.conditional().double().cumsum(dim=1)
        thresholds = uniforms.to(cumulative)[:, None] * cumulative[:, -1:]
        return torch.searchsorted(cumulative, thresholds, right=True)[:, 0].clamp_max(self.matrix.shape[1] - 1)

    def sharpness(self) -> float:
        entropy, rows, columns = (
            -float(torch.special.xlogy(masses, masses).sum())
            for masses in (self.matrix.double(), self.matrix.double().sum(dim=1), self.matrix.double().sum(dim=0))
        )
        return normalised_entropy(entropy, rows, columns)


def solve_with_pot(
    x: Tensor,
    p: Tensor,
    columns: Columns,
    options: Options,
    row_labels: Tensor | None = None,
    start: Start | None = None,
) -> DensePlan:
    """Couple unit rows ``x (n, d)`` with replicated columns by POT's projected gradient in float64.

    Raises:
        UserError: if ε is too small for POT.
    """
    import ot

    assert row_labels is None, "POT's solver has no classes"
    rows, y, row_mass, column_mass = (t.detach().cpu().double() for t in (x, columns.features, p, columns.mass))
    row_mass, column_mass = row_mass / row_mass.sum(), column_mass / column_mass.sum()  # float32 sums miss 1 by an ulp

    def distances(a: Tensor, b: Tensor) -> Tensor:
        return torch.cdist(a, b) if options.geometry == "euclidean" else 1 - a @ b.T

    stop = options.tolerance / len(y) ** 0.5  # POT stops on the L2 error; ours is L1
    inner_options = {"numItermax": options.max_inner_iterations, "stopThr": stop, "warn": False, "log": True}
    log: dict[str, Any]
    if options.structure_weight == 0:
        matrix, log = ot.sinkhorn(
            row_mass,
            column_mass,
            distances(rows, y),
            options.epsilon,
            method="sinkhorn_log",
            **inner_options,
        )
        outer, inner, change = 1, int(log.get("niter", options.max_inner_iterations)), 0.0
    else:
        matrix, log = ot.gromov.entropic_fused_gromov_wasserstein(
            distances(rows, y),
            distances(rows, rows),
            distances(y, y),
            row_mass,
            column_mass,
            loss_fun="square_loss",
            epsilon=options.epsilon,
            alpha=options.structure_weight,
            max_iter=options.max_outer_iterations,
            tol=options.tolerance,
            **inner_options,
        )
        # POT logs its plan's change every tenth iteration, and no count of inner iterations.
        outer = min(10 * max(len(log["err"]), 1), options.max_outer_iterations)
        inner, change = options.max_inner_iterations, float(log["err"][-1]) if log["err"] else float("inf")
    if not bool(torch.isfinite(matrix).all()) or float(matrix.sum()) < 0.5:
        raise UserError(
            f"transport.epsilon {options.epsilon:g} is too small for transport.backend pot; raise it or use native"
        )
    error = float((matrix.sum(dim=1) - row_mass).abs().sum() + (matrix.sum(dim=0) - column_mass).abs().sum())
    return DensePlan(matrix.to(x), Status(outer, inner, 0, outer, error, change, options.tolerance))
