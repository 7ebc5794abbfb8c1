"""What a checkpoint holds, by name: the same names and whole shapes for every strategy and number of ranks."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from gfgw_prod.training.step import TrainingStep

CONSTANT = frozenset({"bank.rows"})  # encoded once; as large as the data set, so a save does not copy it first


class Stateful(Protocol):
    """A part of a run with a state of its own."""

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""


def training_state(step: TrainingStep, **others: Stateful) -> dict[str, Tensor]:
    """Tensors and DTensors by name. Loading a checkpoint into them restores the run.

    Args:
        others: more parts with a state, by the prefix of their names.
    """
    state = {f"generator.{name}": parameter.detach() for name, parameter in step.parallel.module.named_parameters()}
    state |= {f"ema.{name}": tensor for name, tensor in step.ema.tensors.items()}
    for moment, tensors in step.optimizer.moments.items():
        state |= {f"optimizer.{moment}.{name}": tensor for name, tensor in tensors.items()}
    state["bank.rows"] = step.matcher.bank.state()
    parts: dict[str, Stateful] = {**others, "transport": step.matcher, "precision": step.precision}
    for prefix, part in parts.items():
        state |= {f"{prefix}.{name}": tensor for name, tensor in part.tensors().items()}
    return state
