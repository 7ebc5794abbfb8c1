"""Builds the parts of a training step from the settings and a data set."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from gfgw_prod.data.sources import Table
from gfgw_prod.distributed.parallel import Parallel, parallelise
from gfgw_prod.distributed.world import World
from gfgw_prod.features.bank import FeatureBank
from gfgw_prod.features.bank_cache import BankCache
from gfgw_prod.features.extractors import NetworkFeatures, build_extractor
from gfgw_prod.generator import OneStepGenerator, UNetBlock, build_generator, start_generator
from gfgw_prod.generator.ema import Ema
from gfgw_prod.losses.flow import check_scales
from gfgw_prod.losses.perceptual import build_perceptual
from gfgw_prod.settings.config import Config
from gfgw_prod.training.feed import Feed
from gfgw_prod.training.objective import Objective
from gfgw_prod.training.optimizer import AdamW
from gfgw_prod.training.precision import Precision, compile_networks
from gfgw_prod.training.step import TrainingStep
from gfgw_prod.transport.matching import Matcher


def build(
    config: Config,
    world: World,
    table: Table,
    log: Callable[[str], None],
    *,
    fresh: bool = True,
    together: World | None = None,
) -> TrainingStep:
    """Build the networks with their first weights, spread over the ranks, and an empty bank. Collective.

    Args:
        together: the ranks that build at the same time, by default all. A rank that builds alone has its part of the
            tables, and calls ``spread`` when it has joined the others, whose weights it takes.
        fresh: whether a run begins. A run that resumes takes all weights from its checkpoint and reads no published
            network, which may be gone by then.

    Raises:
        UserError: if weights cannot be reached, or settings do not fit the images or each other.
    """
    together = together or world
    shape, device = table.image_shape, world.device
    precision = Precision(config.train.precision, device)

    # Frozen networks.
    extractor = together.rank0_first(lambda: build_extractor(config.features, shape, log)).to(device)
    if device.type == "cuda" and isinstance(extractor, NetworkFeatures):
        extractor.fold_scales()  # on CPUs, features have the bits of earlier versions
    perceptual = None
    if config.loss.lpips:
        perceptual = together.rank0_first(lambda: build_perceptual(config.loss.lpips_trunk, log)).to(device)
    together.on_all_ranks(lambda: check_scales(config.loss.flow_scales, shape))
    objective = Objective(config.loss, extractor, perceptual, precision)

    # The generator, its average and its optimiser.
    settings = config.generator if fresh else config.generator.model_copy(update={"pretrained": None})
    if _is_sharded(config) and together is not world:
        generator = _without_weights(config, table)
    else:
        generator = together.rank0_first(
            lambda: start_generator(settings, shape, table.num_classes, config.seed, log)
        ).to(device)
    if config.train.compile:
        compile_networks([extractor, *_blocks(generator)])
    parallel = _parallel(config, together, table, generator)
    optimizer, ema = _optimizer(config, generator), Ema(generator)

    matcher = _matcher(config, table, FeatureBank(len(table), extractor.dim, world))
    feed = Feed(table, config.data.workers, together)
    return TrainingStep(config, world, table, feed, parallel, objective, matcher, optimizer, ema, precision)


def spread(step: TrainingStep, world: World) -> None:
    """Spread the generator over the ranks that this one has joined, with room for its part of the tables. Collective.

    A sharded one is built again, without weights: FSDP cannot be taken off a module. Tables are, if this rank's part of
    them has changed.
    """
    config = step.config
    if step.world != world:
        step.world = world
        step.matcher = _matcher(config, step.table, FeatureBank(len(step.table), step.matcher.bank.dim, world))
    if _is_sharded(config):
        generator = _without_weights(config, step.table)
        if config.train.compile:
            compile_networks(_blocks(generator))
        step.parallel = _parallel(config, world, step.table, generator)
        generator.to_empty(device=world.device)
        step.optimizer, step.ema = _optimizer(config, generator), Ema(generator)
    else:
        step.parallel = _parallel(config, world, step.table, step.parallel.module)
    step.feed = Feed(step.table, config.data.workers, world)


def _is_sharded(config: Config) -> bool:
    return config.distributed.strategy == "fsdp"


def _matcher(config: Config, table: Table, bank: FeatureBank) -> Matcher:
    """The bank, and what is matched with it."""
    return Matcher(
        config.transport,
        bank,
        bank_labels=table.labels if config.generator.conditional else None,
        num_classes=table.num_classes,
        seed=config.seed,
    )


def _without_weights(config: Config, table: Table) -> OneStepGenerator:
    """The generator on the meta device. It has no buffers, so its parameters are all that has to be filled in."""
    with torch.device("meta"):
        return build_generator(config.generator, table.image_shape, table.num_classes, config.seed)


def _blocks(generator: nn.Module) -> list[nn.Module]:
    """What is compiled: FSDP works between blocks, and blocks of one shape share their kernels."""
    return [module for module in generator.modules() if isinstance(module, UNetBlock)]


def _optimizer(config: Config, generator: nn.Module) -> AdamW:
    return AdamW(generator, betas=config.optimizer.betas, weight_decay=config.optimizer.weight_decay)


def _parallel(config: Config, world: World, table: Table, generator: nn.Module) -> Parallel:
    example = torch.zeros(1, *table.image_shape), torch.ones(1), torch.zeros(1, dtype=torch.long)
    on_device = tuple(each.to(world.device) for each in example)
    return parallelise(generator, world, config.cells, config.distributed, UNetBlock, on_device)


def encode_bank(
    step: TrainingStep, on_block: Callable[[int], None] = lambda rows: None, cache: BankCache | None = None
) -> None:
    """Fill this rank's part of the bank with features or cached rows; ``on_block`` gets the number of rows done."""
    rows = step.config.features.block_rows
    step.matcher.bank.encode(step.table, step.objective.extractor, rows, on_block, cache)
