"""Preconditioning of the one-step generator: EDM's (Karras et al. 2022), in time from data (0) to noise (1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SIGMA_DATA = 0.5  # standard deviation of images in [-1, 1], as EDM assumes it
SIGMA_RANGE = (0.002, 80.0)  # noise levels that the network is conditioned on


def interpolate(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Compute ``x_t = (1 - t) x + t z`` for images ``(n, c, h, w)`` and times ``(n,)``."""
    t = t[:, None, None, None]
    return (1 - t) * data + t * noise


class OneStepGenerator(nn.Module):
    """Predicts clean images, ``G(x_t, t) = c_skip x_t + c_out F(c_in x_t, c_noise)``.

    With ``s = 1 - t`` and ``σ = t / s``, clamped to [0.002, 80]::

        v       = Var(x_t) = s² σ_data² + t² + 2 s t ρ σ_data
        c_skip  = Cov(x, x_t) / v = (s σ_data² + t ρ σ_data) / v
        c_out   = t σ_data √(1 - ρ²) / √v
        c_in    = 1 / √v
        c_noise = ln(σ) / 4

    At ρ = 0 this is eq. 7 of Karras et al. 2022 (arXiv:2206.00364) for ``x_t / s`` at noise level σ. A coupling may
    correlate images with their noise by ρ > 0; then ``G(z, 1)`` contains a multiple of ``z``.

    The boundary condition ``G(x, 0) = x`` holds by construction.

    Args:
        network: ``F``, called as ``network(images, c_noise, one_hot_labels)``.
        num_classes: width of the one-hot labels; 0 is unconditional.
        correlation: ρ, in [0, 1).
    """

    def __init__(self, network: nn.Module, *, num_classes: int = 0, correlation: float = 0.0):
        super().__init__()
        self.network = network
        self.num_classes = num_classes
        self.correlation = correlation

    def coefficients(self, t: Tensor) -> Tensor:
        """``c_skip``, ``c_out``, ``c_in`` and ``c_noise`` at times ``(n,)`` in [0, 1], ``(4, n)``."""
        t = t.to(torch.float32)
        s = 1 - t
        shared = self.correlation * SIGMA_DATA * t  # Cov(x, t z)
        v = s.square() * SIGMA_DATA**2 + t.square() + 2 * s * shared
        c_noise = (t / s.clamp_min(1e-8)).clamp(*SIGMA_RANGE).log() / 4
        c_in = v.rsqrt()
        c_skip = (s * SIGMA_DATA**2 + shared) / v
        c_out = t * (math.sqrt(1 - self.correlation**2) * SIGMA_DATA) * c_in
        return torch.stack([c_skip, c_out, c_in, c_noise])

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Map images ``(n, c, h, w)`` at times, and class ids ``(n,)``, to clean images.

        Args:
            t: times ``(n,)`` in [0, 1], or their coefficients ``(4, n)``.
        """
        c_skip, c_out, c_in, c_noise = t if t.dim() == 2 else self.coefficients(t)
        one_hot = None
        if self.num_classes and labels is not None:
            one_hot = (labels[:, None] == torch.arange(self.num_classes, device=labels.device)).to(x_t.dtype)
        predicted: Tensor = self.network(x_t * c_in[:, None, None, None], c_noise, one_hot)
        images: Tensor = c_skip[:, None, None, None] * x_t + c_out[:, None, None, None] * predicted
        return images

    def sample(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute one-step samples ``G(z, 1)`` from noise ``(n, c, h, w)``."""
        # Use shape[0], not len(): a traced graph would hold len() as a constant and accept no other batch size.
        images: Tensor = self(noise, noise.new_ones(noise.shape[0]), labels)
        return images
