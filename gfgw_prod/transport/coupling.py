"""What a solver takes and gives: options and a start in, a coupling and its status out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class Options:
    """How to solve; see ``fused_gromov_wasserstein``."""

    structure_weight: float
    epsilon: float
    geometry: Literal["cosine", "euclidean"] = "cosine"
    max_outer_iterations: int = 50
    max_inner_iterations: int = 2000
    tolerance: float = 1e-6
    fixed_iterations: bool = False
    noise_term: Tensor | None = None  # (n, d); lowers the cost of pair i, j by <noise_term_i, y_j>; cosine only
    dual_balance: float | None = None  # if set, one step from ``Start.g`` replaces the solve; see ``Sinkhorn.run_once``


@dataclass(frozen=True)
class Start:
    """Where a solver starts: a column potential ``(m,)`` in units of the cost, and a state of the geometry."""

    g: Tensor | None = None
    state: Tensor | None = None


COLD = Start()  # zero potential, independent coupling


@dataclass(frozen=True)
class Status:
    """How the solver ended. With ``fixed_iterations`` both errors stay on the device until a property reads them."""

    outer_iterations: int
    inner_iterations: int
    hessians: int  # built for Newton's steps
    kernel_builds: int
    error: Tensor | float
    state_error: Tensor | float  # estimated relative distance of the state from its fixed point
    tolerance: float

    @property
    def marginal_error(self) -> float:
        """L1 error of the row marginal; of the column marginal if the last update made the rows exact."""
        return float(self.error)

    @property
    def converged(self) -> bool:
        """Whether the marginal error and the state's error are both within the tolerance."""
        return self.marginal_error <= self.tolerance and float(self.state_error) <= self.tolerance
