"""What a solver takes and gives, whoever solves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from gfgw_prod.transport.columns import Columns


class Coupling(Protocol):
    """A coupling of ``n`` rows with columns; see ``plan.Plan`` for what the answers mean."""

    @property
    def status(self) -> Status: ...

    def argmax(self) -> Tensor: ...

    def sample(self, uniforms: Tensor) -> Tensor: ...

    def barycentre(self, values: Callable[[slice], Tensor], width: int) -> Tensor: ...

    def sharpness(self) -> float: ...


class Backend(Protocol):
    """Couples rows ``x (n, d)`` of masses ``p (n,)`` with columns."""

    def __call__(
        self, x: Tensor, p: Tensor, columns: Columns, options: Options, row_labels: Tensor | None, start: Start, /
    ) -> Coupling: ...


@dataclass(frozen=True)
class Start:
    """Where to go on from: a column potential ``(m,)`` in units of the cost, and a state of the geometry."""

    g: Tensor | None = None
    state: Tensor | None = None


COLD = Start()  # from nothing


@dataclass(frozen=True)
class Options:
    """How to solve; see ``fused_gromov_wasserstein``."""

    structure_weight: float
    epsilon: float
    geometry: Literal["cosine", "euclidean"] = "cosine"
    marginal: Literal["balanced", "semi_relaxed"] = "balanced"
    max_outer_iterations: int = 50
    max_inner_iterations: int = 2000
    tolerance: float = 1e-6
    anneal_from: float | None = None
    fixed_trips: bool = False
    pull: Tensor | None = None  # of geometry ``Cosine``
    column_step: float | None = None  # of ``Sinkhorn.run_once``, made once instead of solving for the marginals


@dataclass(frozen=True)
class Status:
    """How the solver ended. In fixed-trip mode the errors stay on the device until they are asked for."""

    outer_iterations: int
    inner_iterations: int
    hessians: int  # built for Newton's steps
    kernel_builds: int
    error: Tensor | float
    change: Tensor | float
    tolerance: float

    @property
    def marginal_error(self) -> float:
        """L1 error of one marginal, almost always the rows'. The other is exact, or not asked for."""
        return float(self.error)

    @property
    def converged(self) -> bool:
        """Whether the marginal error and what is left to go of the state, relative, are within the tolerance."""
        return self.marginal_error <= self.tolerance and float(self.change) <= self.tolerance
