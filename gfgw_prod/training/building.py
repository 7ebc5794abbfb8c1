"""From settings and a data set to all that a training step needs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gfgw_prod.data.sources import Table
from gfgw_prod.distributed.parallel import parallelise
from gfgw_prod.distributed.world import World
from gfgw_prod.features.bank import FeatureBank
from gfgw_prod.features.extractors import build_extractor
from gfgw_prod.generator import UNetBlock, start_generator
from gfgw_prod.generator.ema import Ema
from gfgw_prod.losses.flow import check_scales
from gfgw_prod.losses.perceptual import build_perceptual
from gfgw_prod.settings.config import Config
from gfgw_prod.training.feed import Feed
from gfgw_prod.training.objective import Objective
from gfgw_prod.training.optimizer import AdamW
from gfgw_prod.training.precision import Precision, compile_networks
from gfgw_prod.training.state import Parts
from gfgw_prod.training.step import TrainingStep
from gfgw_prod.transport.matching import Matcher


def build(config: Config, world: World, table: Table, report: Callable[[str], None], *, fresh: bool = True) -> Parts:
    """The networks with their first weights, spread over the ranks, and all around them. Collective.

    Args:
        fresh: whether a run begins. One that goes on takes all weights from its checkpoint: no published network is
            read, which may be gone by then.

    Raises:
        UserError: if weights cannot be reached, or settings do not fit the images or each other.
    """
    shape, loss = table.image_shape, config.loss
    extractor = world.rank0_first(lambda: build_extractor(config.features, shape, report)).to(world.device)
    perceptual = None
    if loss.lpips:
        perceptual = world.rank0_first(lambda: build_perceptual(loss.lpips_trunk, report)).to(world.device)
    world.on_all_ranks(lambda: check_scales(loss.flow_scales, shape))
    settings = config.generator if fresh else config.generator.model_copy(update={"pretrained": None})
    generator = world.rank0_first(lambda: start_generator(settings, shape, table.num_classes, config.seed, report)).to(
        world.device
    )
    precision = Precision(config.train.precision, world.device)
    if config.train.compile:
        compile_networks(generator, UNetBlock, extractor)
    example = (
        torch.zeros(1, *shape, device=world.device),
        torch.ones(1, device=world.device),
        torch.zeros(1, dtype=torch.long, device=world.device),
    )
    parallel = parallelise(generator, world, config.cells, config.distributed, UNetBlock, example)
    o = config.optimizer
    optimizer = AdamW(generator, betas=o.betas, weight_decay=o.weight_decay)
    ema = Ema(generator)
    bank = FeatureBank(len(table), extractor.dim, world)
    matcher = Matcher(config.transport, bank, table, seed=config.seed, conditional=config.generator.conditional)
    objective = Objective(loss, extractor, perceptual, precision)
    feed = Feed(table, config.data.workers, world)
    step = TrainingStep(config, world, table, feed, parallel, objective, matcher, optimizer, ema, precision)
    return Parts(parallel, optimizer, ema, bank, matcher, precision, objective, feed, step)
