"""The boundary-conditioned wrapper: EDM's preconditioning in straight-line time (t = 0 data, t = 1 noise)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SIGMA_DATA = 0.5
SIGMA_RANGE = (0.002, 80.0)


def interpolate(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """``x_t = (1 - t) x + t z`` for images ``(n, c, h, w)`` and times ``(n,)``."""
    t = t[:, None, None, None]
    return (1 - t) * data + t * noise


class OneStepGenerator(nn.Module):
    """Predicts clean images: ``G(x_t, t) = (a / v) x_t + t σd √((1 - ρ²) / v) F(x_t / √v, ln(σ) / 4)``.

    ``s = 1 - t``, ``a = s σd² + t ρ σd``, ``v = s² σd² + t² + 2 s t ρ σd``, ``σ = t / s`` clamped to [0.002, 80]. Where
    images and their noise correlate by ρ, as those of a coupling may, ``a`` is the covariance of image and ``x_t``, and
    ``v`` the variance of ``x_t``. At ρ = 0 this is Karras et al. 2022, eq. 7, at σ = t / s; else a sample has some of
    its noise in it to begin with. ``G(x, 0) = x`` holds by construction. With ``exact_boundary=False`` the output is
    ``F`` itself and the boundary is only approached through the boundary loss.

    Args:
        network: ``F``, called as ``network(images, noise_level, labels)``.
        num_classes: size of the one-hot labels; 0 is unconditional.
        correlation: ρ, in [0, 1).
    """

    def __init__(
        self, network: nn.Module, *, num_classes: int = 0, exact_boundary: bool = True, correlation: float = 0.0
    ):
        super().__init__()
        self.network = network
        self.num_classes = num_classes
        self.exact_boundary = exact_boundary
        self.correlation = correlation

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images ``(n, c, h, w)``, times ``(n,)`` in [0, 1], class ids ``(n,)`` -> clean images ``(n, c, h, w)``."""
        t = t.to(torch.float32)
        s = 1 - t
        shared = self.correlation * SIGMA_DATA * t
        v = s.square() * SIGMA_DATA**2 + t.square() + 2 * s * shared
        noise_level = (t / s.clamp_min(1e-8)).clamp(*SIGMA_RANGE).log() / 4
        one_hot = None
        if self.num_classes and labels is not None:
            one_hot = (labels[:, None] == torch.arange(self.num_classes, device=labels.device)).to(x_t.dtype)
        scale = v.rsqrt()[:, None, None, None]
        predicted: Tensor = self.network(x_t * scale, noise_level, one_hot)
        if not self.exact_boundary:
            return predicted
        skip = ((s * SIGMA_DATA**2 + shared) / v)[:, None, None, None]
        new = math.sqrt(1 - self.correlation**2) * SIGMA_DATA
        return skip * x_t + t[:, None, None, None] * new * scale * predicted

    def sample(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """One-step samples ``G(z, 1)`` of noise ``(n, c, h, w)``."""
        # shape[0], not len(): a traced graph would keep len() as a constant and take no other batch size.
        images: Tensor = self(noise, noise.new_ones(noise.shape[0]), labels)
        return images
