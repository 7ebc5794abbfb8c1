"""A step of the first version's run at its full size: two cells of four images, frozen networks with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.frozen import draw_frozen
from gfgw_prod.data.sources import Table
from gfgw_prod.data.stream import cell_stream
from gfgw_prod.settings import reading
from gfgw_prod.training.building import build, encode_bank
from gfgw_prod.training.objective import Losses
from gfgw_prod.training.step import TrainingStep
from gfgw_prod.training.step_data import StepResult

from ..checkpoints import ALONE

CONFIG = Path(__file__).parents[2] / "configs" / "seed_report.yaml"
ROWS = 24


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> TrainingStep:
    """The run's step, the bank encoded; weights of the frozen networks are drawn and read from files."""
    directory = tmp_path_factory.mktemp("weights")
    dinov2, trunk = draw_frozen(directory)
    images = torch.randint(0, 256, (ROWS, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    table = Table(images, torch.arange(ROWS) % 10, peak=255, num_classes=10)
    local = {
        "features": {"weights": str(dinov2), "block_rows": 8},
        "loss": {"lpips_trunk": str(trunk)},
        "train": {"batch_size": 8, "cell_size": 4},
    }
    training = build(reading.resolve(reading.read_yaml(CONFIG), local), ALONE, table, print)
    encode_bank(training)
    return training


@pytest.fixture(scope="module")
def computed(training: TrainingStep) -> StepResult:
    """The first step, computed and not applied."""
    return training.compute(0, rows_of(training))


def rows_of(training: TrainingStep, step: int = 0) -> list:
    spread = training.parallel.spread
    stream = cell_stream(training.table, spread, seed=0, first_step=step, last_step=step + 1, size=4, rank=0)
    return list(stream)


def test_network_is_the_reports(training: TrainingStep) -> None:
    assert sum(parameter.numel() for parameter in training.parallel.module.parameters()) == 61_805_827
    assert training.matcher.bank.dim == 384


def test_all_losses_are_finite_and_those_with_weight_are_not_zero(computed: StepResult) -> None:
    assert computed.losses.shape[0] == 2
    assert computed.losses.isfinite().all()
    terms = dict(zip(Losses._fields, computed.losses.unbind(dim=1), strict=True))
    assert (terms.pop("boundary") == 0).all()  # enforced by construction
    for term in ("energy", "consistency"):
        assert (terms.pop(term) == 0).all()  # no part of the report
    assert all((term > 0).all() for term in terms.values())
    assert bool(computed.finite)


def test_gradient_is_finite_and_reaches_every_tensor_of_the_network(
    training: TrainingStep, computed: StepResult
) -> None:
    assert computed.gradient_norm.isfinite()
    at_rest = [
        name
        for name, p in training.parallel.module.named_parameters()
        if not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert at_rest == []


@pytest.mark.parametrize("term", ["flow", "feature", "structure", "lpips"])
def test_each_loss_has_a_gradient_to_the_images(training: TrainingStep, computed: StepResult, term: str) -> None:
    table, rows = training.table, computed.match.rows[:4]
    predicted = table.rows(torch.arange(4)).mul(0.5).requires_grad_()
    losses = training.objective(predicted, table.rows(rows), computed.match.features[:4])
    [gradient] = torch.autograd.grad(getattr(losses, term), predicted)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
