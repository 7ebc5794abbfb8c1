"""Entropic optimal transport from logits: Sinkhorn in the kernel domain, potentials absorbed as they grow.

Iterating ``u = p / (K v)``, ``v = q / (Kᵀ u)`` costs two matrix-vector products; the log-domain form costs two passes
of exponentials. Whenever a scaling leaves a safe range it is folded into the potentials and the kernel is rebuilt
(Schmitzer 2019, "Stabilized sparse scaling algorithms", algorithm 2), so nothing overflows however small ε is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# A scaling is absorbed when it leaves [1/ABSORB, ABSORB]: far inside float32, far from its rounding.
ABSORB = 1e6


@dataclass
class Potentials:
    """Dual variables in units of the logits: ``T = exp(f[:, None] + logits + g[None, :])``; ``f (n,)``, ``g (N,)``."""

    f: Tensor
    g: Tensor


def sinkhorn(
    logits: Tensor,
    log_p: Tensor,
    log_q: Tensor,
    start: Potentials | None = None,
    *,
    tolerance: float,
    max_iterations: int,
    check_every: int = 5,
) -> tuple[Potentials, int, float]:
    """Potentials of the coupling with marginals ``p`` and ``q``.

    Args:
        logits: ``(n, N)``, minus the cost over ε.
        log_p, log_q: ``(n,)`` and ``(N,)``; ``-inf`` marks rows and columns without mass.
        start: potentials to go on from.
        tolerance: L1 error of the row marginal at which to stop (columns are exact after each iteration).

    Returns:
        The potentials, the iterations made and the L1 marginal error.
    """
    p, q = log_p.exp(), log_q.exp()
    has_row, has_column = p > 0, q > 0
    g = start.g.clone() if start is not None else torch.zeros_like(log_q)
    # Even a poor start is safe after one log-domain half-iteration, which bounds the kernel by p.
    f = _log_row_update(logits, g, log_p)
    iterations, error = 0, float("inf")
    while iterations < max_iterations and error > tolerance:
        g = _log_row_update(logits.T, f, log_q)
        kernel = torch.exp(f[:, None] + logits + g[None, :])  # (n, N), the current plan
        u, v = torch.ones_like(p), torch.ones_like(q)
        iterations += 1
        while True:
            rows = kernel @ v
            if (iterations - 1) % check_every == 0 or iterations >= max_iterations:
                error = float((u * rows - p).abs().sum())
                if error <= tolerance or iterations >= max_iterations:
                    break
            u = torch.where(has_row, p / rows, 0)
            columns = u @ kernel
            v = torch.where(has_column, q / columns, 0)
            iterations += 1
            if not (_is_safe(u, has_row) and _is_safe(v, has_column)):
                break
        f, g, safe = _absorb(f, g, u, v, has_row, has_column)
        if not safe:
            f = _log_row_update(logits, g, log_p)
    return Potentials(f, g), iterations, error


def _log_row_update(logits: Tensor, g: Tensor, log_p: Tensor) -> Tensor:
    """The exact log-domain half-iteration ``f = log p - logsumexp(logits + g)``; rows without mass stay at -inf."""
    lse = torch.logsumexp(logits + g[None, :], dim=1)
    return torch.where(torch.isfinite(log_p), log_p - lse, -torch.inf)


def _is_safe(scaling: Tensor, has_mass: Tensor) -> bool:
    live = scaling[has_mass]
    return bool((live < ABSORB).all() and (live > 1 / ABSORB).all())


def _absorb(
    f: Tensor, g: Tensor, u: Tensor, v: Tensor, has_row: Tensor, has_column: Tensor
) -> tuple[Tensor, Tensor, bool]:
    """Folds scalings into potentials; if one has left the range of floats, says so and keeps the old potentials."""
    safe = bool(torch.isfinite(u[has_row]).all() and torch.isfinite(v[has_column]).all())
    safe = safe and bool((u[has_row] > 0).all() and (v[has_column] > 0).all())
    if not safe:
        return f, g, False
    return f + torch.where(has_row, u.log(), 0), g + torch.where(has_column, v.log(), 0), True
