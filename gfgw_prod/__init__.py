"""gfgw_prod: a fault-tolerant trainer of one-step image generators by fused Gromov-Wasserstein flow matching."""

__version__ = "0.1.0"
