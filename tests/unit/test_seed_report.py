"""One step of the first version's run with full-size networks (frozen ones random), on two cells of two images."""

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
CELL = 2
ROWS = 2 * CELL

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> TrainingStep:
    """The run's parts with an encoded bank; the frozen networks read random weights from files."""
    directory = tmp_path_factory.mktemp("weights")
    dinov2, trunk = draw_frozen(directory)
    images = torch.randint(0, 256, (ROWS, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    table = Table(images, torch.arange(ROWS) % 10, peak=255, num_classes=10)
    local = {
        "features": {"weights": str(dinov2), "block_rows": 8},
        "loss": {"lpips_trunk": str(trunk)},
        # In float32, as a CPU convolves ten times as fast as in bfloat16; tests/gpu has both networks in bfloat16.
        "train": {"batch_size": 2 * CELL, "cell_size": CELL, "precision": "fp32"},
    }
    training = build(reading.resolve(reading.read_yaml(CONFIG), local), ALONE, table, print)
    encode_bank(training)
    return training


@pytest.fixture(scope="module")
def computed(training: TrainingStep) -> StepResult:
    """The first step, computed but not applied."""
    return training.compute(0, rows_of(training))


def rows_of(training: TrainingStep, step: int = 0) -> list:
    assignment = training.parallel.assignment
    stream = cell_stream(training.table, assignment, seed=0, first_step=step, last_step=step + 1, size=CELL, rank=0)
    return list(stream)


def test_network_has_the_reported_size(training: TrainingStep) -> None:
    assert sum(parameter.numel() for parameter in training.parallel.module.parameters()) == 61_805_827
    assert training.matcher.bank.dim == 384


def test_losses_are_finite_and_every_weighted_one_is_positive(computed: StepResult) -> None:
    assert computed.losses.shape[0] == 2
    assert computed.losses.isfinite().all()
    terms = dict(zip(Losses._fields, computed.losses[:, :-1].unbind(dim=1), strict=True))
    for term in ("energy", "consistency"):
        assert (terms.pop(term) == 0).all()  # off in that run
    assert all((term > 0).all() for term in terms.values())
    assert bool(computed.finite)


def test_gradient_is_finite_and_reaches_every_tensor_of_the_network(
    training: TrainingStep, computed: StepResult
) -> None:
    assert computed.gradient_norm.isfinite()
    without_gradient = [
        name
        for name, p in training.parallel.module.named_parameters()
        if not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert without_gradient == []


@pytest.mark.parametrize("term", ["flow", "feature", "structure", "lpips"])
def test_each_loss_has_a_gradient_to_the_images(training: TrainingStep, computed: StepResult, term: str) -> None:
    table, rows = training.table, computed.match.rows[:CELL]
    predicted = table.rows(torch.arange(CELL)).mul(0.5).requires_grad_()
    losses = training.objective(predicted, table.rows(rows), computed.match.features[:CELL])
    [gradient] = torch.autograd.grad(getattr(losses, term), predicted)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
