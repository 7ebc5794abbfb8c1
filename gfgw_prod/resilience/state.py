"""What a checkpoint holds, by name: the same names and whole shapes for every strategy and number of ranks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gfgw_prod.features.bank import FeatureBank
from gfgw_prod.generator.ema import Ema
from gfgw_prod.resilience.checkpoint import sharded_rows

MOMENTS = ("exp_avg", "exp_avg_sq")


def optimizer_moments(optimizer: torch.optim.Optimizer, module: nn.Module, *, steps: int) -> dict[str, Tensor]:
    """AdamW's moments by parameter name; a fresh optimiser gets zeros, as after ``steps`` steps, to load into."""
    moments = {}
    for name, parameter in module.named_parameters():
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.tensor(float(steps))
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        for moment in MOMENTS:
            moments[f"{moment}.{name}"] = state[moment]
    return moments


def training_state(module: nn.Module, ema: Ema, moments: dict[str, Tensor], bank: FeatureBank) -> dict[str, Tensor]:
    """Tensors and DTensors by name. Loading a checkpoint into them restores the run."""
    state = {f"generator.{name}": parameter.detach() for name, parameter in module.named_parameters()}
    state |= {f"ema.{name}": tensor for name, tensor in ema.tensors.items()}
    state |= {f"optimizer.{name}": tensor for name, tensor in moments.items()}
    state["bank.rows"] = sharded_rows(bank.local, bank.total, bank.world)
    return state
