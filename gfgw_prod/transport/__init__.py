"""Optimal transport between generated and stored features."""

from gfgw_prod.transport.fgw import Start, fused_gromov_wasserstein
from gfgw_prod.transport.plan import Plan, Potentials, Status

__all__ = ["Plan", "Potentials", "Start", "Status", "fused_gromov_wasserstein"]
