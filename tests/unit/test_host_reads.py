"""What the host waits for in a step, which a GPU must not idle for: two reads, and a record's where one is due."""

from __future__ import annotations

import collections
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gfgw_prod.data.sources import load_table
from gfgw_prod.data.stream import cell_stream
from gfgw_prod.resilience.bad_numbers import NumberGuard
from gfgw_prod.settings import reading
from gfgw_prod.training.building import build, encode_bank
from gfgw_prod.training.checked_step import CheckedStep

from ..checkpoints import ALONE

DIGITS = Path(__file__).parents[2] / "configs" / "digits.yaml"
FEW = {"iterations": "fixed", "outer_iterations": 2, "inner_iterations": 5}
METHODS = {"item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__", "__array__"}
# Operations whose result's size, or check of their input, has the host wait for a GPU.
OPERATIONS = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "bincount", "is_nonzero", "aten.equal")


# What is on the host anyway: state of the run, ids that the stream brought, and the counters of torch's AdamW for CPUs
# (for GPUs it is fused).
ON_HOST = {
    "precision.py:scale",
    "bad_numbers.py:anomaly",
    "bad_numbers.py:accept",
    "matching.py:_candidates",
    "optimizer.py:step",
}


def place() -> str:
    """The function of ours that is under way."""
    frames = [frame for frame in traceback.extract_stack() if f"{Path('/gfgw_prod')}/" in frame.filename]
    inner = [frame for frame in frames if "/tests/" not in frame.filename][-1]
    return f"{Path(inner.filename).name}:{inner.name}"


class Methods(TorchFunctionMode):
    """Counts calls that hand a tensor's values to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in METHODS:
            self.found[place()] += 1
        return function(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Counts operations for which torch itself looks at values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(function) for name in OPERATIONS) or chooses_by_mask(str(function), args):
            self.found[place()] += 1
        return function(*args, **(kwargs or {}))


def chooses_by_mask(operation: str, args: Any) -> bool:
    indices = args[1] if operation.startswith(("aten.index.", "aten.index_put")) else []
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)


def reads_of_a_step(transport: dict[str, Any]) -> dict[str, int]:
    """How often each function has the host wait in the second step of a digits run."""
    config = reading.resolve(reading.read_yaml(DIGITS), {"transport": transport})
    table = load_table(config.data)
    training = build(config, ALONE, table, print)
    encode_bank(training)
    guard, size = NumberGuard(config.resilience), config.train.cell_size
    options = {"audit_every_steps": 0, "hosts": ["here"], "log": print}
    step = CheckedStep(training, guard, ALONE, **options)
    stream = cell_stream(table, training.parallel.assignment, seed=0, first_step=0, last_step=2, size=size, rank=0)
    step(0, stream)
    with Methods() as methods, Operations() as operations:
        step(1, stream)
    return {name: count for name, count in (methods.found | operations.found).items() if name not in ON_HOST}


@pytest.mark.parametrize(
    "transport",
    [
        {},  # full scope, a persistent dual
        {"dual": "fresh", **FEW},
        {"scope": "subset", "subset_rows": 256, **FEW},
        {"scope": "subset", "dual": "fresh", "geometry": "euclidean", "noise_weight": 0.0, **FEW},
        {"target": "sample"},
    ],
    ids=str,
)
def test_host_waits_for_the_targets_ids_and_for_the_guards_numbers_and_nothing_else(transport: dict[str, Any]) -> None:
    assert reads_of_a_step(transport) == {"feed.py:targets": 1, "checked_step.py:_numbers": 1}


def test_targets_that_the_stream_brought_need_no_read() -> None:
    assert reads_of_a_step({"target": "independent"}) == {"checked_step.py:_numbers": 1}


def test_solver_that_stops_when_it_is_exact_enough_looks_at_its_errors() -> None:
    found = reads_of_a_step({"dual": "fresh"})
    assert found["sinkhorn.py:run"] > 1
