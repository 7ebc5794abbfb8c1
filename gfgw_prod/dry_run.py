"""``train --dry-run``: what a run would take, found by building it on the meta device."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gfgw_prod.config import Config
from gfgw_prod.data.sources import shape_and_classes
from gfgw_prod.distributed.cells import Spread
from gfgw_prod.distributed.reduction import levels
from gfgw_prod.features.extractors import DINOV2, Dinov2Features
from gfgw_prod.generator import build_generator
from gfgw_prod.losses.flow import check_scales
from gfgw_prod.losses.perceptual import PerceptualLoss
from gfgw_prod.resilience.exit_codes import FINISHED, UserError

FLOAT_BYTES = 4
FEATURE_DIMS = {"dinov2": 384}


def plan(config: Config, *, ranks: int, as_json: bool) -> int:
    """Prints parameters, steps, cells per rank, memory per rank and bytes on the wire per rank and step.

    Raises:
        UserError: if the settings cannot make a run on so many ranks.
    """
    if not 1 <= ranks <= config.cells:
        raise UserError(f"--ranks should lie between 1 and the {config.cells} cells of a step, not {ranks}")
    shape, classes, rows = shape_and_classes(config.data.source)
    check_scales(config.loss.flow_scales, shape)
    with torch.device("meta"):
        generator = build_generator(config.generator, shape, classes, config.seed)
    parameters = sum(p.numel() for p in generator.parameters())
    dim = FEATURE_DIMS.get(config.features.extractor, math.prod(shape))
    spread = Spread.under(config.distributed.strategy, config.cells, ranks)
    share = ranks if config.distributed.strategy == "fsdp" else 1
    # Weights, gradient, two moments and the average; with exact reduction also the partial sums.
    state = 5 * parameters // share
    if config.distributed.strategy == "ddp" and ranks > 1:
        state += parameters  # DDP's buckets
    if config.distributed.reduction == "exact":
        state += parameters // share * _partial_sums(spread)
    bank = -(-rows // ranks) * dim
    if config.transport.scope == "full":
        bank += rows * dim
    coupled = rows if config.transport.scope == "full" else min(config.transport.subset_rows, rows)
    frozen = frozen_networks(config, shape)
    memory = {
        "state": state * FLOAT_BYTES,
        "frozen": sum(p.numel() for network in frozen for p in network.parameters()) * FLOAT_BYTES,
        "activations": saved_bytes(generator, frozen, config.train.cell_size, shape),
        "bank": bank * FLOAT_BYTES,
        "coupling": 2 * config.train.batch_size * coupled * FLOAT_BYTES,
    }
    sent = _sent_bytes(config, parameters, spread, dim, coupled)
    report = {
        "parameters": parameters,
        "steps": config.total_steps,
        "images": config.total_steps * config.train.batch_size,
        "ranks": ranks,
        "cells": config.cells,
        "cells_per_rank": spread.turns,
        "idle_share": spread.idle_share,
        "memory_bytes_per_rank": memory,
        "sent_bytes_per_rank_and_step": sent,
    }
    if as_json:
        print(json.dumps(report, indent=1))
        return FINISHED
    print(f"parameters        {parameters:,}")
    print(f"steps             {report['steps']:,} of {config.train.batch_size} images ({report['images']:,})")
    print(f"cells             {config.cells} of {config.train.cell_size}; {spread.turns} per rank on {ranks} ranks")
    for name, size in memory.items():
        print(f"memory, {name:<12}{size / 2**20:>10,.1f} MiB per rank")
    print(f"sent per step     {sent / 2**20:>12,.1f} MiB per rank")
    return FINISHED


def _partial_sums(spread: Spread) -> int:
    """The most sums of cells that a rank keeps at a time: of its own cells, or (FSDP) its slice of all cells'."""
    held = [spread.held(rank) for rank in range(spread.world_size)] if spread.contiguous else [range(spread.cells)]
    return max(len(levels(range(cells.start, stop))) for cells in held for stop in range(cells.start, cells.stop + 1))


def frozen_networks(config: Config, shape: tuple[int, int, int]) -> list[nn.Module]:
    """The networks that losses look through, with gradient to the image, on the meta device."""
    networks: list[nn.Module] = []
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips builds its trunk with torchvision's old arguments
        if config.features.extractor == "dinov2":
            import timm

            side = config.features.image_size
            backbone = timm.create_model(DINOV2, pretrained=False, num_classes=0, img_size=side)
            networks.append(Dinov2Features(backbone, side))
        if config.loss.lpips:
            import lpips

            metric = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False).to("meta")
            networks.append(_AgainstAnImage(PerceptualLoss(metric)))
    return networks


class _AgainstAnImage(nn.Module):
    """LPIPS as a function of the generated image alone."""

    def __init__(self, loss: PerceptualLoss):
        super().__init__()
        self.loss = loss

    def forward(self, images: Tensor) -> Tensor:
        distance: Tensor = self.loss(images, torch.zeros_like(images))
        return distance


def saved_bytes(generator: nn.Module, frozen: Sequence[nn.Module], cell_size: int, shape: tuple[int, int, int]) -> int:
    """Bytes that one cell's forward pass through the generator and the losses' networks keeps for its backward pass."""
    seen: dict[int, int] = {}
    keep: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and id(tensor) not in seen:
            keep.append(tensor)  # an id is only unique while its object lives
            seen[id(tensor)] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        labels = torch.zeros(cell_size, dtype=torch.long)
        images = generator(torch.zeros(cell_size, *shape), torch.ones(cell_size), labels)
        for network in frozen:
            network(images)
    return sum(seen.values())


def _sent_bytes(config: Config, parameters: int, spread: Spread, dim: int, coupled: int) -> int:
    """Bytes a rank sends in a step: gradients, weights (FSDP), features and drawn bank rows."""
    ranks = spread.world_size
    part = (ranks - 1) / ranks
    exchanges = 1  # of a gradient: one reduce-scatter a step
    if config.distributed.reduction == "exact":  # one for each node of the tree, or every turn
        nodes = max(len(levels(spread.held(rank))) for rank in range(ranks))
        exchanges = nodes if spread.contiguous else spread.turns
    if spread.contiguous:
        weights = parameters * part  # the other half of the all-reduce
    else:
        weights = parameters * part * 3 * spread.turns  # gathered to generate, to regress forward, to go backward
    features = config.train.batch_size * part * dim
    drawn = coupled * part * dim if config.transport.scope == "subset" else 0
    return round((parameters * part * exchanges + weights + features + drawn) * FLOAT_BYTES)
