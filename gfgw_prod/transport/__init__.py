"""Optimal transport between generated and stored features."""

from gfgw_prod.transport.coupling import Start, Status
from gfgw_prod.transport.fgw import fused_gromov_wasserstein
from gfgw_prod.transport.plan import Plan, Potentials

__all__ = ["Plan", "Potentials", "Start", "Status", "fused_gromov_wasserstein"]
