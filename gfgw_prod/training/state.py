"""What a checkpoint holds, by name: the same names and whole shapes for every strategy and number of ranks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from gfgw_prod.training.step import TrainingStep

CONSTANT = frozenset({"bank.rows"})  # encoded once; as large as the data set, so a save does not copy it first


def training_state(step: TrainingStep, **others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors and DTensors by name, with those of ``others``. Loading a checkpoint into them restores the run."""
    state = {f"generator.{name}": parameter.detach() for name, parameter in step.optimizer.parameters.items()}
    state |= {f"ema.{name}": tensor for name, tensor in step.ema.tensors.items()}
    for moment, tensors in step.optimizer.moments.items():
        state |= {f"optimizer.{moment}.{name}": tensor for name, tensor in tensors.items()}
    state["bank.rows"] = step.matcher.bank.state()
    parts = {**others, "transport": step.matcher.tensors(), "precision": step.precision.tensors()}
    for prefix, part in parts.items():
        state |= {f"{prefix}.{name}": tensor for name, tensor in part.items()}
    return state
