"""Drifting and Sinkhorn drifting: samples move to data of their class, and apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.quality.objectives import Objective, features_of
from gfgw_prod.data.sources import Table
from gfgw_prod.generator import OneStepGenerator
from gfgw_prod.settings.config import Config

FAR = 1e4  # distance between classes
BLOCK = 256  # images whose features are taken at once


class Drifting(Objective):
    """Drifting (Deng et al. 2026, arXiv:2602.04770, algorithm 2): samples move to data of their class, and apart.

    Features are those of the settings, divided by their mean distance. The fields of all temperatures are scaled to
    unit mean square and added. A sample regresses on where the field takes it. Features of the data are taken once,
    before training, as our bank's are.

    Args:
        temperatures: of the kernel ``exp(-distance / temperature)``.
        positives: data drawn for each sample, of its class.
        classes: at most as many classes in a step, so that each has more samples; 0: as in the data.
        raw: take pixels as they are, not the features of the settings.
    """

    def __init__(
        self,
        config: Config,
        table: Table,
        temperatures: Sequence[float] = (0.02, 0.05, 0.2),
        positives: int = 8,
        classes: int = 0,
        *,
        raw: bool = False,
    ):
        super().__init__(config, table)
        self.generator = OneStepGenerator(self.network, num_classes=table.num_classes)
        self.features = partial(torch.flatten, start_dim=1) if raw else features_of(config, table)
        self.temperatures, self.positives, self.classes_a_step = tuple(temperatures), positives, classes
        self.sizes = table.labels.bincount(minlength=table.num_classes)
        self.starts = self.sizes.cumsum(0) - self.sizes  # of the classes in ``data``
        by_class = table.labels.argsort(stable=True)
        with torch.no_grad():
            self.data = torch.cat([self.features(table.rows(rows)) for rows in by_class.split(BLOCK)])

    def forward(self, noise: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        images: Tensor = self.generator(noise, t, labels)
        return images

    def loss(self, images: Tensor, labels: Tensor, progress: float, stream: torch.Generator) -> Tensor:
        noise = torch.randn(images.shape, generator=stream)
        if self.classes_a_step:
            drawn = torch.randint(self.classes_a_step, (len(labels),), generator=stream)
            labels = labels[: self.classes_a_step][drawn]
        x = self.features(self(noise, torch.ones(len(noise)), labels))
        scale, field = self.field(x.detach(), labels, stream)
        return (x / scale - (x / scale + field).detach()).square().mean()

    def data_of(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Features of data drawn from the classes ``(n,)``, ``(n, d)``."""
        within = (torch.rand(len(labels), generator=stream) * self.sizes[labels]).long()
        return self.data[self.starts[labels] + within]

    @torch.no_grad()
    def field(self, x: Tensor, labels: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """The mean distance of samples ``(n, d)`` to data, and where each is to drift, in units of it."""
        others = labels.repeat_interleave(self.positives)
        data = self.data_of(others, stream)
        to_data, apart = torch.cdist(x, data), torch.cdist(x, x)
        scale = to_data.mean()
        to_data = torch.where(labels[:, None] == others, to_data / scale, FAR)
        alike = labels[:, None] == labels
        apart = torch.where(alike, apart / scale, FAR)
        apart.diagonal().copy_(torch.where(alike.sum(dim=1) > 1, FAR, 0))
        field = torch.zeros_like(x)
        for temperature in self.temperatures:
            to, away = self.couplings(-to_data / temperature, -apart / temperature)
            found = (to @ data - away @ x) / scale
            field += found / found.square().mean().sqrt().clamp_min(1e-12)
        return scale, field

    def couplings(self, to_data: Tensor, apart: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of data ``(n, m)`` and of samples ``(n, n)``, from logits; no sample's own, but of one alone."""
        logits = torch.cat([to_data, apart], dim=1)
        to, away = (logits.softmax(dim=1) * logits.softmax(dim=0)).sqrt().split([to_data.shape[1], len(apart)], dim=1)
        return to * away.sum(dim=1, keepdim=True), away * to.sum(dim=1, keepdim=True)


class SinkhornDrifting(Drifting):
    """Drifting by entropic transport plans (He et al. 2026, arXiv:2603.12366): a Sinkhorn divergence's gradient.

    As many data as samples: with more, a plan at a low temperature leads each sample to a mean of several images.
    """

    def __init__(self, config: Config, table: Table, iterations: int = 30, positives: int = 1, **others: Any):
        super().__init__(config, table, positives=positives, **others)
        self.iterations = iterations

    def couplings(self, to_data: Tensor, apart: Tensor) -> tuple[Tensor, Tensor]:
        return self._plan(to_data), self._plan(apart)

    def _plan(self, logits: Tensor) -> Tensor:
        """The plan whose rows have mass 1 and whose columns have equal masses; none of it between classes."""
        n, m = logits.shape
        columns = torch.zeros(m)
        for _ in range(self.iterations):
            rows = -torch.logsumexp(logits + columns, dim=1, keepdim=True)
            columns = math.log(n / m) - torch.logsumexp(logits + rows, dim=0)
        rows = -torch.logsumexp(logits + columns, dim=1, keepdim=True)
        return (logits + rows + columns).exp() * (logits > -FAR)
