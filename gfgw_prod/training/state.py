"""What a checkpoint holds, by name: the same names and whole shapes for every strategy and number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from gfgw_prod.distributed.parallel import Parallel
from gfgw_prod.features.bank import FeatureBank
from gfgw_prod.features.bank_cache import BankCache
from gfgw_prod.generator.ema import Ema
from gfgw_prod.training.feed import Feed
from gfgw_prod.training.objective import Objective
from gfgw_prod.training.optimizer import AdamW
from gfgw_prod.training.precision import Precision
from gfgw_prod.training.step import TrainingStep
from gfgw_prod.transport.matching import Matcher

CONSTANT = frozenset({"bank.rows"})  # encoded once; as large as the data set, and copied for no save


class Keeper(Protocol):
    """A part of a run with a state of its own."""

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""


def training_state(
    module: nn.Module, ema: Ema, optimizer: AdamW, bank: FeatureBank, kept: Mapping[str, Keeper]
) -> dict[str, Tensor]:
    """Tensors and DTensors by name. Loading a checkpoint into them restores the run.

    Args:
        kept: what else has a state, by the name that it stands under.
    """
    state = {f"generator.{name}": parameter.detach() for name, parameter in module.named_parameters()}
    state |= {f"ema.{name}": tensor for name, tensor in ema.tensors.items()}
    for moment, tensors in optimizer.moments.items():
        state |= {f"optimizer.{moment}.{name}": tensor for name, tensor in tensors.items()}
    state["bank.rows"] = bank.state()
    for prefix, keeper in kept.items():
        state |= {f"{prefix}.{name}": tensor for name, tensor in keeper.tensors().items()}
    return state


@dataclass
class Parts:
    """What trains, and what it trains with; the bank is empty at first."""

    parallel: Parallel
    optimizer: AdamW
    ema: Ema
    bank: FeatureBank
    matcher: Matcher
    precision: Precision
    objective: Objective
    feed: Feed
    step: TrainingStep

    @property
    def frozen(self) -> list[nn.Module]:
        """Networks that are used and not trained."""
        perceptual = self.objective.perceptual
        return [self.objective.extractor, *([] if perceptual is None else [perceptual])]

    def encode_bank(self, on_block: Callable[[int], None] = lambda rows: None, cache: BankCache | None = None) -> None:
        """Fills this rank's part of the bank; ``on_block`` hears how many rows are done."""
        step, features = self.step, self.step.config.features
        rows, views = features.block_rows, features.views
        self.bank.encode(step.table, self.objective.extractor, rows, on_block, views=views, cache=cache)

    def state(self, **kept: Keeper) -> dict[str, torch.Tensor]:
        """All that a checkpoint holds, with what others keep, by name."""
        kept = {**kept, "transport": self.matcher, "precision": self.precision}
        return training_state(self.parallel.module, self.ema, self.optimizer, self.bank, kept)
