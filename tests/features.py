"""Random unit feature rows and marginals."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def unit_rows(rows: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Rows ``(rows, dim)`` in random directions."""
    return normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype))


def close_rows(rows: int, dim: int, seed: int) -> Tensor:
    """Rows around a common direction, like features of images: POT and our solver converge at every tested ε."""
    generator = torch.Generator().manual_seed(seed)
    return normalize(1 + 0.6 * torch.randn(rows, dim, generator=generator, dtype=torch.float64))


def marginal(rows: int, seed: int) -> Tensor:
    """Random masses ``(rows,)`` that sum to 1."""
    weights = torch.rand(rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.05
    return weights / weights.sum()
