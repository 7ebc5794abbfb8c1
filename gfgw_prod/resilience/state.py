"""What a checkpoint holds, by name: the same names and whole shapes for every strategy and number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from gfgw_prod.features.bank import FeatureBank
from gfgw_prod.generator.ema import Ema
from gfgw_prod.optimizer import AdamW

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
