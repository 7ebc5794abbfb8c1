"""Optimal transport between generated and stored features."""

from gfgw_prod.transport.fgw import Plan, Status, fused_gromov_wasserstein
from gfgw_prod.transport.sinkhorn import Potentials, sinkhorn

__all__ = ["Plan", "Potentials", "Status", "fused_gromov_wasserstein", "sinkhorn"]
