"""A coupling in factored form, and what is computed from it without the whole matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gfgw_prod.distributed.transfers import to_device
from gfgw_prod.transport.coupling import Status
from gfgw_prod.transport.geometry import Geometry
from gfgw_prod.transport.sinkhorn import MASS_BITS, RATIO_BITS, Sinkhorn


@dataclass(frozen=True)
class Potentials:
    """Dual variables in units of the logits: ``T = exp(f[:, None] + logits + g[None, :])``; ``f (n,)``, ``g (m,)``."""

    f: Tensor
    g: Tensor


@dataclass(frozen=True)
class Plan:
    """A coupling of ``n`` rows with ``N`` columns, of which this rank holds ``m``: the solver's kernel and scalings.

    Where columns are spread over ranks, all methods but ``conditional``, ``dense`` and ``column_mass`` are collective,
    and answers about rows are the same on every rank.
    """

    solver: Sinkhorn
    geometry: Geometry
    state: Tensor  # of the geometry; for cosine S = Xᵀ T Y, (d, d)
    structure_weight: float
    epsilon: float
    status: Status

    @property
    def potentials(self) -> Potentials:
        """``f`` and this rank's ``g``; -inf for rows and columns without mass."""
        row_offsets, g = self.solver.potentials()
        return Potentials(self.solver.p.log() + row_offsets, g)

    def conditional(self) -> Tensor:
        """``T_ij / p_i`` for this rank's columns, ``(n, m)``."""
        return self.solver.conditional()

    def dense(self) -> Tensor:
        """The coupling matrix's columns on this rank, ``(n, m)``."""
        return self.conditional().mul_(self.solver.p[:, None])

    def column_mass(self) -> Tensor:
        """``Tᵀ 1`` of this rank's columns, ``(m,)``."""
        return self.solver.column_mass()

    def argmax(self) -> Tensor:
        """Each row's heaviest column by global id, ``(n,)``; the lowest id of several."""
        return self.solver.columns.argmax(self.solver.conditional_blocks(), self.solver.p)

    def sample(self, uniforms: Tensor) -> Tensor:
        """Draw a column per row, by global id, from ``T_ij / p_i`` by inverse transform of ``uniforms (n,)``.

        The masses of blocks are integers, so the block a number falls into does not depend on the number of ranks.
        """
        p, columns, world = self.solver.p, self.solver.columns, self.solver.columns.world
        masses = [
            (weights.sum(dim=1).double() * 2.0**MASS_BITS).round().to(torch.int64)
            for _, weights in self.solver.conditional_blocks()
        ]
        chosen = torch.zeros(len(p), dtype=torch.int64, device=p.device)
        local = torch.stack(masses).sum(dim=0) if masses else chosen
        by_rank = local[None] if world is None else world.all_gather(local)  # (W, n)
        # What is left of the drawn mass at the start of this rank's first block, then of each next block.
        left = (to_device(uniforms, p.device).double() * by_rank.sum(dim=0)).floor().to(torch.int64)
        left = left - by_rank[: 0 if world is None else world.rank].sum(dim=0)
        for (block, weights), mass in zip(self.solver.conditional_blocks(), masses, strict=True):
            cumulative = weights.double().cumsum(dim=1)
            threshold = (left / mass.clamp_min(1)) * cumulative[:, -1]
            column = torch.searchsorted(cumulative, threshold[:, None], right=True)[:, 0]
            column = columns.first + block.start + column.clamp_max(weights.shape[1] - 1)
            chosen = torch.where((left >= 0) & (left < mass), column, chosen)
            left = left - mass
        return chosen if world is None else world.all_reduce_sum(chosen)

    def objective(self) -> float:
        """``(1-λ)<M, T> + λ Σ (C1_ik - C2_jl)² T_ij T_kl - ε H(T)``."""
        linear, structure = self.geometry.costs(self.state, self.solver)
        lam = self.structure_weight
        return (1 - lam) * linear + lam * structure - self.epsilon * self.entropy()

    def entropy(self) -> float:
        """``H(T) = -Σ T log T``, in nats."""
        p = self.solver.p
        parts = []
        for _, weights in self.solver.conditional_blocks():
            parts.append(-(p @ torch.special.xlogy(weights, weights).sum(dim=1)))
        return float(self.solver.columns.sum(parts, p[0], RATIO_BITS)) + _entropy(p)

    def sharpness(self) -> float:
        """Normalised entropy: 0 for a plan as sharp as its marginals allow, 1 for the independent plan."""
        columns, mass = self.solver.columns, self.column_mass().double()
        rows = _entropy(self.solver.p)
        parts = [-torch.special.xlogy(mass[block], mass[block]).sum() for block in columns.blocks]
        of_columns = float(columns.sum(parts, mass.new_empty(()), RATIO_BITS))
        return normalised_entropy(self.entropy(), rows, of_columns)


def _entropy(masses: Tensor) -> float:
    return -math.fsum(torch.special.xlogy(masses.double(), masses.double()).tolist())


def normalised_entropy(plan: float, rows: float, columns: float) -> float:
    """A plan's entropy, scaled from the least that its marginals' entropies allow, 0, to the most, 1."""
    least = max(rows, columns)
    return (plan - least) / max(rows + columns - least, 1e-12)
