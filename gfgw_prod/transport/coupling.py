"""What a solver takes and gives, whoever solves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from gfgw_prod.transport.columns import Columns
from gfgw_prod.transport.fgw import Options, Start
from gfgw_prod.transport.plan import Status


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
