"""A coupling in factored form: what can be asked of it without writing it down."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gfgw_prod.transport.columns import Columns
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
    state: Tensor  # the geometry's; for cosine S = Xᵀ T Y, (d, d)
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
        whole = self._p.new_empty(len(self._p), len(self._columns.features))
        for block, weights in self.solver.conditional_blocks():
            whole[:, block] = weights
        return whole

    def dense(self) -> Tensor:
        """The coupling matrix's columns on this rank, ``(n, m)``."""
        return self.conditional().mul_(self._p[:, None])

    def column_mass(self) -> Tensor:
        """``Tᵀ 1`` of this rank's columns, ``(m,)``."""
        return self.solver.column_mass()

    def argmax(self) -> Tensor:
        """Each row's heaviest column by global id, ``(n,)``; the lowest id of several."""
        best = self._p.new_full((len(self._p),), -1.0)
        where = torch.zeros(len(self._p), dtype=torch.int64, device=self._p.device)
        for block, weights in self.solver.conditional_blocks():
            value, column = weights.max(dim=1)
            better = value > best
            best = torch.where(better, value, best)
            where = torch.where(better, self._columns.first + block.start + column, where)
        world = self._columns.world
        if world is None:
            return where
        rank = world.all_gather(best).argmax(dim=0)
        return world.all_gather(where).gather(0, rank[None])[0]

    def sample(self, uniforms: Tensor) -> Tensor:
        """A column per row, by global id, drawn from ``T_ij / p_i`` by inverting its distribution at ``uniforms (n,)``.

        The masses of blocks are integers, so the block a number falls into does not depend on the number of ranks.
        """
        n, device, world = len(self._p), self._p.device, self._columns.world
        masses = [
            (weights.sum(dim=1).double() * 2.0**MASS_BITS).round().to(torch.int64)
            for _, weights in self.solver.conditional_blocks()
        ]
        here = torch.stack(masses).sum(dim=0) if masses else torch.zeros(n, dtype=torch.int64, device=device)
        by_rank = here[None] if world is None else world.all_gather(here)  # (W, n)
        above = (uniforms.to(device).double() * by_rank.sum(dim=0)).floor().to(torch.int64)
        above = above - by_rank[: 0 if world is None else world.rank].sum(dim=0)
        chosen = torch.zeros(n, dtype=torch.int64, device=device)
        for (block, weights), mass in zip(self.solver.conditional_blocks(), masses, strict=True):
            cumulative = weights.double().cumsum(dim=1)
            threshold = (above / mass.clamp_min(1)) * cumulative[:, -1]
            column = torch.searchsorted(cumulative, threshold[:, None], right=True)[:, 0]
            column = self._columns.first + block.start + column.clamp_max(weights.shape[1] - 1)
            chosen = torch.where((above >= 0) & (above < mass), column, chosen)
            above = above - mass
        return chosen if world is None else world.all_reduce_sum(chosen)

    def barycentre(self, values: Callable[[slice], Tensor], width: int) -> Tensor:
        """Each row's mean of ``values``, ``(n, width)``, under ``T_ij / p_i``.

        Args:
            values: gives ``(b, width)`` for a slice of this rank's columns, entries of at most 1000 in size.
        """
        p = self._p

        def with_ones(block: slice) -> Tensor:
            wanted = values(block).to(p)
            return torch.cat([wanted, wanted.new_ones(len(wanted), 1)], dim=1)

        total = self.solver.times(with_ones, width + 1)
        return total[:, :-1] / total[:, -1:].clamp_min(torch.finfo(p.dtype).tiny)

    def objective(self) -> float:
        """``(1-λ)<M, T> + λ Σ (C1_ik - C2_jl)² T_ij T_kl - ε H(T)``."""
        linear, structure = self.geometry.costs(self.state, self)
        lam = self.structure_weight
        return (1 - lam) * linear + lam * structure - self.epsilon * self.entropy()

    def entropy(self) -> float:
        """``H(T) = -Σ T log T``, in nats."""
        parts = []
        for _, weights in self.solver.conditional_blocks():
            parts.append(-(self._p @ torch.special.xlogy(weights, weights).sum(dim=1)))
        return float(self._columns.sum(parts, self._p[0], RATIO_BITS)) + _entropy(self._p)

    def sharpness(self) -> float:
        """Renormalised entropy: 0 for a plan as sharp as its marginals allow, 1 for the independent plan."""
        mass = self.column_mass().double()
        rows = _entropy(self._p)
        parts = [-torch.special.xlogy(mass[block], mass[block]).sum() for block in self._columns.blocks]
        columns = float(self._columns.sum(parts, self._p.new_empty((), dtype=torch.float64), RATIO_BITS))
        return renormalised_entropy(self.entropy(), rows, columns)

    @property
    def _p(self) -> Tensor:
        return self.solver.p

    @property
    def _columns(self) -> Columns:
        return self.solver.columns


def _entropy(masses: Tensor) -> float:
    return -math.fsum(torch.special.xlogy(masses.double(), masses.double()).tolist())


def renormalised_entropy(plan: float, rows: float, columns: float) -> float:
    """A plan's entropy between the least that its marginals' entropies allow, 0, and the most, 1."""
    least = max(rows, columns)
    return (plan - least) / max(rows + columns - least, 1e-12)
