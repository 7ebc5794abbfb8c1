"""The objectives of the other methods, but drifting. Calling such a module samples in one step."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gfgw_prod.data.sources import Table
from gfgw_prod.features.extractors import build_extractor
from gfgw_prod.generator import OneStepGenerator, SongUNet, interpolate
from gfgw_prod.generator.unet import PositionalEmbedding
from gfgw_prod.losses.feature import feature_loss
from gfgw_prod.losses.flow import flow_loss
from gfgw_prod.losses.structure import structure_loss
from gfgw_prod.settings.config import Config


def features_of(config: Config, table: Table) -> Callable[[Tensor], Tensor]:
    """The extractor as a function: as a submodule, its frozen weights would count as the objective's."""
    extractor: Callable[[Tensor], Tensor] = build_extractor(config.features, table.image_shape).__call__
    return extractor


class Objective(nn.Module):
    """A generator and its loss."""

    def __init__(self, config: Config, table: Table):
        super().__init__()
        self.config, self.classes = config, table.num_classes
        self.network = self.unet(table)

    def unet(self, table: Table, extra: int = 0) -> SongUNet:
        """The U-Net of the settings, with ``extra`` conditioning values after the classes."""
        g = self.config.generator
        return SongUNet(
            table.image_shape[-1],
            table.image_shape[0],
            model_channels=g.model_channels,
            channel_mult=g.channel_mult,
            channel_mult_emb=g.channel_mult_emb,
            num_blocks=g.num_blocks,
            attention_resolutions=g.attention_resolutions,
            dropout=g.dropout,
            label_dim=table.num_classes + extra,
            channels_last=g.channels_last,
        )

    def one_hot(self, labels: Tensor) -> Tensor:
        return nn.functional.one_hot(labels, self.classes).float()

    def loss(self, images: Tensor, labels: Tensor, progress: float, stream: torch.Generator) -> Tensor:
        """Loss of a batch ``(n, c, h, w)`` with class ids ``(n,)``; ``progress`` runs from 0 to 1."""
        raise NotImplementedError


def _paired_by_plan(noise: Tensor, images: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw pairs from the exact OT plan between noise and images, as torchcfm does: indices, ``(n,)`` each."""
    import ot

    cost = torch.cdist(noise.flatten(1), images.flatten(1)).square().double().numpy()
    plan = ot.emd(ot.unif(len(noise)), ot.unif(len(images)), cost)
    weights = torch.from_numpy(np.asarray(plan)).flatten()
    drawn = torch.multinomial(weights, len(noise), replacement=True, generator=stream)
    return drawn // len(images), drawn % len(images)


class MinibatchOtFlow(Objective):
    """Conditional flow matching on exact minibatch couplings (Tong et al. 2024, arXiv:2302.00482), one Euler step."""

    def forward(self, noise: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        velocity: Tensor = self.network(noise, t, self.one_hot(labels))
        return noise - velocity

    def loss(self, images: Tensor, labels: Tensor, progress: float, stream: torch.Generator) -> Tensor:
        noise = torch.randn(images.shape, generator=stream)
        rows, columns = _paired_by_plan(noise, images, stream)
        noise, images, labels = noise[rows], images[columns], labels[columns]
        t = torch.rand(len(images), generator=stream)
        velocity = self.network(interpolate(images, noise, t), t, self.one_hot(labels))
        return (velocity - (noise - images)).square().mean()


class MinibatchOtRegression(Objective):
    """Our loss at ``t = 1`` on exact minibatch couplings of noise and images in pixel space."""

    def __init__(self, config: Config, table: Table):
        super().__init__(config, table)
        self.generator = OneStepGenerator(self.network, num_classes=table.num_classes)
        self.features = features_of(config, table)

    def forward(self, noise: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        images: Tensor = self.generator(noise, t, labels)
        return images

    def loss(self, images: Tensor, labels: Tensor, progress: float, stream: torch.Generator) -> Tensor:
        noise = torch.randn(images.shape, generator=stream)
        rows, columns = _paired_by_plan(noise, images, stream)
        noise, images, labels = noise[rows], images[columns], labels[columns]
        generated, weights = self(noise, torch.ones(len(noise)), labels), self.config.loss
        features, targets = self.features(generated), self.features(images)
        return (
            weights.flow * flow_loss(generated, images, huber=weights.flow_huber, scales=weights.flow_scales)
            + weights.feature * feature_loss(features, targets)
            + weights.structure * structure_loss(features, targets)
        )


class EasyConsistency(Objective):
    """Easy Consistency Tuning from scratch (Geng et al. 2024, arXiv:2406.14548): ``t - r`` shrinks from stage to stage.

    ``r = t (1 - (1 + 8 sigmoid(-t)) / q^(1 + stage))`` in EDM's noise levels. The first stage trains a diffusion model.
    The loss is ``√(|e|² + c²) - c``, weighted by ``1 / (t - r)``.

    Args:
        q: factor by which ``t - r`` shrinks from one stage to the next.
        stages: number of stages of equal length.
        c: radius of the pseudo-Huber distance.
        location, scale: of the normal distribution of log noise levels.
    """

    def __init__(
        self,
        config: Config,
        table: Table,
        q: float = 2.0,
        stages: int = 8,
        c: float = 0.06,
        location: float = -1.1,
        scale: float = 2.0,
    ):
        super().__init__(config, table)
        self.generator = OneStepGenerator(self.network, num_classes=table.num_classes)
        self.q, self.stages, self.c, self.location, self.scale = q, stages, c, location, scale

    def forward(self, noise: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        images: Tensor = self.generator(noise, t, labels)
        return images

    def denoised(self, images: Tensor, noise: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """EDM's denoiser at noise levels ``(n,)``: our generator at ``t = σ / (1 + σ)``."""
        t = sigma / (1 + sigma)
        return self(interpolate(images, noise, t), t, labels)

    def loss(self, images: Tensor, labels: Tensor, progress: float, stream: torch.Generator) -> Tensor:
        noise = torch.randn(images.shape, generator=stream)
        t = (torch.randn(len(images), generator=stream) * self.scale + self.location).exp()
        stage = min(math.floor(progress * self.stages), self.stages - 1)
        r = (t * (1 - (1 + 8 * torch.sigmoid(-t)) / self.q ** (stage + 1))).clamp_min(0)
        with torch.no_grad():
            nearer = self.denoised(images, noise, r, labels)
            nearer = torch.where((r > 0)[:, None, None, None], nearer, images)
        error = self.denoised(images, noise, t, labels) - nearer
        distance = (error.square().flatten(1).sum(dim=1) + self.c**2).sqrt() - self.c
        return (distance / (t - r)).mean()


class _ContiguousGroupNorm(nn.GroupNorm):
    """GroupNorm with forward-mode derivatives in any memory layout: torch's own refuses others."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clone(memory_format=torch.contiguous_format))


class MeanFlow(Objective):
    """Average velocity over ``[r, t]`` (Geng et al. 2025, arXiv:2505.13447), with the settings of its U-Net runs.

    The network gets ``t`` as its time, and an embedding of ``t - r`` after the classes.

    Args:
        unequal: share of the batch with ``r < t``.
        location, scale: of the logit-normal distribution of times.
        power: of the adaptive weight ``1 / (|e|² + c)^power``.
    """

    def __init__(
        self,
        config: Config,
        table: Table,
        unequal: float = 0.75,
        location: float = -2.0,
        scale: float = 2.0,
        power: float = 0.75,
    ):
        nn.Module.__init__(self)
        self.config, self.classes = config, table.num_classes
        channels = config.generator.model_channels
        self.network = self.unet(table, extra=channels)
        for module in self.network.modules():
            if isinstance(module, nn.GroupNorm):
                module.__class__ = _ContiguousGroupNorm
        self.embedding = PositionalEmbedding(channels)
        self.unequal, self.location, self.scale, self.power = unequal, location, scale, power

    def velocity(self, z: Tensor, r: Tensor, t: Tensor, one_hot: Tensor) -> Tensor:
        """The average velocity ``(n, c, h, w)``."""
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward-mode derivative
            found: Tensor = self.network(z, t, torch.cat([one_hot, self.embedding(t - r)], dim=1))
        return found

    def forward(self, noise: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return noise - self.velocity(noise, torch.zeros_like(t), t, self.one_hot(labels))

    def loss(self, images: Tensor, labels: Tensor, progress: float, stream: torch.Generator) -> Tensor:
        n = len(images)
        noise, one_hot = torch.randn(images.shape, generator=stream), self.one_hot(labels)
        times = torch.sigmoid(torch.randn(2, n, generator=stream) * self.scale + self.location)
        t, r = times.amax(dim=0), times.amin(dim=0)
        split = round(n * self.unequal)  # rows are in random order
        r = torch.cat([r[:split], t[split:]])
        z, velocity = interpolate(images, noise, t), noise - images
        slope = torch.zeros_like(z)
        found = self.velocity(z, r, t, one_hot)
        with torch.no_grad():
            _, slope[:split] = torch.func.jvp(
                lambda z, r, t: self.velocity(z, r, t, one_hot[:split]),
                (z[:split], r[:split], t[:split]),
                (velocity[:split], torch.zeros(split), torch.ones(split)),
            )
        target = velocity - (t - r)[:, None, None, None] * slope
        error = (found - target).square().flatten(1).sum(dim=1)
        return (error / (error.detach() + 1e-3) ** self.power).mean()
