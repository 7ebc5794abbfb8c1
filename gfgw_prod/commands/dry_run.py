"""``train --dry-run``: estimates of memory and traffic, from networks on the meta device."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gfgw_prod.data.sources import outline_of
from gfgw_prod.distributed.cells import CellAssignment
from gfgw_prod.distributed.parallel import ranks_per_copy
from gfgw_prod.distributed.reduction import node_levels
from gfgw_prod.distributed.row_table import rows_per_block
from gfgw_prod.features.extractors import NetworkFeatures, feature_dim, network_of
from gfgw_prod.generator import build_generator
from gfgw_prod.losses.flow import check_scales
from gfgw_prod.losses.perceptual import PerceptualLoss
from gfgw_prod.process.exit_codes import FINISHED, UserError
from gfgw_prod.process.standard_streams import log
from gfgw_prod.settings.config import Config
from gfgw_prod.settings.running import DistributedSettings
from gfgw_prod.settings.training import PrecisionName
from gfgw_prod.training.precision import DTYPES, Precision
from gfgw_prod.transport.fitted import check_largest_class
from gfgw_prod.weights.published import VGG16, check_exists

FLOAT_BYTES, ID_BYTES = 4, 8


def estimate(config: Config, *, ranks: int, as_json: bool) -> int:
    """Print parameters, steps, cells, memory and bytes sent, or raise ``UserError`` for too few or too many ranks."""
    if not 1 <= ranks <= config.cells:
        raise UserError(f"--ranks should lie between 1 and the {config.cells} cells of a step, not {ranks}")
    shape, classes, rows, largest = outline_of(config.data, log)
    if config.transport.is_fitted:
        check_largest_class(largest if config.generator.conditional else rows)
    check_scales(config.loss.flow_scales, shape)
    with torch.device("meta"):
        generator = build_generator(config.generator, shape, classes, config.seed)
        frozen = frozen_networks(config)
    on_gpu = config.run.device == "cuda"
    shards = ranks_per_copy(config.distributed, ranks)
    size, precision = config.train.cell_size, config.train.precision
    activations, casts = saved_bytes(
        generator, frozen, size, shape, precision, on_gpu=on_gpu, casts_are_shared=shards == 1
    )
    parameters = sum(p.numel() for p in generator.parameters())
    dim = feature_dim(config.features, shape)
    assignment = CellAssignment(config.cells, ranks)
    kept = min(config.train.kept_passes, assignment.turns_per_rank) if config.train.one_step_share else 0
    # Weights, gradients, two moments and the EMA, and gradients that wait to be summed.
    state = round((5 + _kept_gradients(assignment, config.distributed, shards)) * parameters / shards)
    block = rows_per_block(rows)
    held = math.ceil(math.ceil(rows / block) / ranks) * block  # rows of the bank on the first rank
    coupled, gathered = _coupled_rows(config, rows, held)
    memory = {
        "state": state * FLOAT_BYTES,
        "frozen": sum(p.numel() for network in frozen for p in network.parameters()) * FLOAT_BYTES,
        # Passes kept until they have targets are in memory together.
        "activations": activations * max(kept, 1) + casts,
        # Features of each row, the step that last used it as a target, and a potential that is kept.
        "bank": held * (dim * FLOAT_BYTES + ID_BYTES + (FLOAT_BYTES if config.transport.dual != "fresh" else 0)),
        # Packed images are mapped into memory, which the system can reclaim. Labels are not.
        "table": rows * (ID_BYTES + (0 if config.data.source == "packed" else math.prod(shape))),
        "coupling": (2 * config.train.batch_size * coupled + gathered * dim) * FLOAT_BYTES,
    }
    sent = _sent_bytes(config, parameters, assignment, shards, dim, gathered)
    report = {
        "rows": rows,
        "image_shape": shape,
        "classes": classes,
        "parameters": parameters,
        "steps": config.total_steps,
        "images": config.total_steps * config.train.batch_size,
        "ranks": ranks,
        "cells": config.cells,
        "cells_per_rank": assignment.turns_per_rank,
        "idle_share": assignment.idle_share,
        "memory_bytes_per_rank": memory,
        "sent_bytes_per_rank_and_step": sent,
    }
    if as_json:
        print(json.dumps(report, indent=1))
        return FINISHED
    train, turns = config.train, assignment.turns_per_rank
    epochs, sides = config.total_steps * train.batch_size / rows, " x ".join(map(str, shape))
    print(
        f"data              {rows:,} images of {sides}, {classes:,} class{'es' * (classes != 1)}; {epochs:,.1f} epochs"
    )
    print(f"parameters        {parameters:,}")
    print(f"steps             {report['steps']:,} of {train.batch_size} images ({report['images']:,})")
    print(f"cells             {config.cells} of {train.cell_size}; {turns} per rank on {ranks} rank{'s' * (ranks > 1)}")
    for name, size in memory.items():
        print(f"memory, {name:<12}{size / 2**20:>10,.1f} MiB per rank")
    print(f"sent per step     {sent / 2**20:>12,.1f} MiB per rank")
    return FINISHED


def _kept_gradients(assignment: CellAssignment, settings: DistributedSettings, shards: int) -> float:
    """Peak size of gradients outside ``.grad``, relative to a rank's ``.grad``."""
    sums = 0
    if settings.reduction == "exact":  # partial sums over a rank's own cells
        owned = assignment.cells_by_rank
        sums = max(len(node_levels(range(own.start, stop))) for own in owned for stop in range(own.start, own.stop + 1))
    if assignment.world_size == 1:
        return sums
    if settings.strategy == "ddp":
        return sums + 1  # DDP's buckets
    if assignment.turns_per_rank == 1:
        return 0
    return shards * max(sums, 1)  # unsharded


def _coupled_rows(config: Config, rows: int, held: int) -> tuple[int, int]:
    """Columns of a rank's part of the coupling, and bank rows gathered for it."""
    if config.transport.target == "independent":
        return 0, 0
    if config.transport.scope == "subset":
        drawn = min(config.transport.subset_rows, rows)
        return drawn, drawn
    if config.transport.is_fitted:
        return min(held, rows_per_block(rows)), 0
    return (held, 0) if config.transport.backend == "native" else (rows, rows)


def frozen_networks(config: Config) -> list[nn.Module]:
    """The frozen networks of the losses, on the meta device; ``UserError`` if a file of weights does not exist."""
    networks: list[nn.Module] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips uses deprecated arguments of torchvision
        if (network := network_of(config.features)) is not None:
            if config.features.weights is not None:
                check_exists(network.published, config.features.weights)
            networks.append(NetworkFeatures(network, network.on_meta()))
        if config.loss.lpips:
            import lpips

            if config.loss.lpips_trunk is not None:
                check_exists(VGG16, config.loss.lpips_trunk)
            networks.append(PerceptualLoss(lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)))
    return networks


def saved_bytes(
    generator: nn.Module,
    frozen: Sequence[nn.Module],
    cell_size: int,
    shape: tuple[int, int, int],
    precision: PrecisionName,
    *,
    on_gpu: bool = False,
    casts_are_shared: bool = False,
) -> tuple[int, int]:
    """Bytes that one cell's forward pass through the generator and the losses' networks saves for the backward pass.

    Consumes the networks, which are on the meta device. Weights are not counted. Their copies in another precision are
    part of the result or, if all passes share them, returned as a second number. With ``on_gpu`` the frozen networks'
    norms save their inputs in float32, as CUDA computes them under autocast.
    """
    if on_gpu and precision in DTYPES:
        for module in itertools.chain.from_iterable(network.modules() for network in frozen):
            if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
                module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    own: set[int] = set()
    seen: dict[int, int] = {}
    keep: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        if (storage := _storage(tensor)) not in own and storage not in seen:  # several views may share a storage
            keep.append(tensor)  # an address is unique only while its storage lives
            seen[storage] = tensor.untyped_storage().nbytes()
        return tensor

    networks, casts = (generator, *frozen), 0
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    arithmetic = Precision(precision, torch.device("cpu"))
    # Unlike meta tensors, fake ones support autocast.
    with FakeTensorMode(allow_non_fake_inputs=True), hooks, ExitStack() as stack:
        for network in networks:
            network.to_empty(device="cpu")
            own |= {_storage(each) for each in (*network.parameters(), *network.buffers())}
        if casts_are_shared:
            stack.enter_context(arithmetic.cast_weights(*networks))
            layers = itertools.chain.from_iterable(network.modules() for network in networks)
            shared = [each for layer in layers for each in vars(layer).values() if isinstance(each, Tensor)]
            own |= {_storage(each) for each in shared}
            casts = sum(each.nbytes for each in shared)
        labels = torch.zeros(cell_size, dtype=torch.long)
        with arithmetic.autocast():
            images = generator(torch.zeros(cell_size, *shape), torch.ones(cell_size), labels)
        for network in frozen:
            against = [torch.zeros_like(images)] if isinstance(network, PerceptualLoss) else []
            with arithmetic.autocast():
                network(images, *against)
    return sum(seen.values()), casts


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _sent_bytes(
    config: Config, parameters: int, assignment: CellAssignment, shards: int, dim: int, gathered: int
) -> int:
    """Bytes sent per rank and step: gradients, weights (FSDP), features and drawn bank rows."""
    ranks = assignment.world_size
    part, within, groups = (ranks - 1) / ranks, (shards - 1) / shards, ranks // shards
    exact = config.distributed.reduction == "exact"
    # One reduce-scatter of the gradient a step or, under exact, one for each node of the summation tree.
    exchanges = max(len(node_levels(cells)) for cells in assignment.cells_by_rank) if exact else 1
    gradients = parameters * part * exchanges
    gradients += parameters / shards * (groups - 1) / groups  # copies of the generator gather their sums
    weights = parameters * within * 3 * assignment.turns_per_rank  # gathered to generate and for both passes; 0: ddp
    rows = (config.train.batch_size + gathered) * part * dim
    return round((gradients + weights + rows) * FLOAT_BYTES)
