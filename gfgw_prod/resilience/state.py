"""What a checkpoint holds, by name: the same names and whole shapes for every strategy and number of ranks."""

from __future__ import annotations

from torch import Tensor, nn

from gfgw_prod.features.bank import FeatureBank
from gfgw_prod.generator.ema import Ema
from gfgw_prod.optimizer import AdamW
from gfgw_prod.resilience.number_guard import NumberGuard
from gfgw_prod.transport.matching import Matcher


def training_state(
    module: nn.Module, ema: Ema, optimizer: AdamW, bank: FeatureBank, matcher: Matcher, guard: NumberGuard
) -> dict[str, Tensor]:
    """Tensors and DTensors by name. Loading a checkpoint into them restores the run."""
    state = {f"generator.{name}": parameter.detach() for name, parameter in module.named_parameters()}
    state |= {f"ema.{name}": tensor for name, tensor in ema.tensors.items()}
    for moment, tensors in optimizer.moments.items():
        state |= {f"optimizer.{moment}.{name}": tensor for name, tensor in tensors.items()}
    state["bank.rows"] = bank.state()
    state |= {f"guard.{name}": tensor for name, tensor in guard.tensors().items()}
    return state | {f"transport.{name}": tensor for name, tensor in matcher.tensors().items()}
