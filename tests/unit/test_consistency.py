"""Steps before t = 1 that regress on what the generator makes nearer to the image."""

from __future__ import annotations

import pytest
import torch

from gfgw_prod.data.sources import load_table
from gfgw_prod.data.stream import cell_stream
from gfgw_prod.generator import interpolate
from gfgw_prod.losses.flow import flow_distances
from gfgw_prod.settings import reading
from gfgw_prod.settings.config import Config
from gfgw_prod.training.building import build, encode_bank
from gfgw_prod.training.step import TrainingStep
from gfgw_prod.training.step_data import StepResult
from gfgw_prod.training.times import draw_times, nearer_times

from ..checkpoints import ALONE

SIZE, CELL_SIZE = 32, 16


def config_with(**consistency: float | str) -> Config:
    """Digits, every step before t = 1."""
    return reading.resolve(
        {
            "data": {"source": "digits"},
            "generator": {
                "model_channels": 8,
                "channel_mult": [1, 2],
                "num_blocks": 1,
                "attention_resolutions": [],
                "dropout": 0.5,
                "conditional": True,
            },
            "features": {"extractor": "pixels"},
            "transport": {"scope": "full", "dual": "persistent"},
            "loss": {"consistency": 3.0},
            "time": {"stage1_kimg": 0},
            "consistency": consistency,
            "train": {"batch_size": SIZE, "cell_size": CELL_SIZE, "one_step_share": 0.0},
        },
        {},
    )


def first_step(config: Config) -> tuple[TrainingStep, StepResult]:
    """A step with weights that are not those of an untrained network, and what it computes first."""
    table = load_table(config.data)
    training = build(config, ALONE, table, print)
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in training.parallel.module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=stream), alpha=0.05)
    encode_bank(training)
    rows = cell_stream(
        table, training.parallel.assignment, seed=config.seed, first_step=0, last_step=1, size=CELL_SIZE, rank=0
    )
    return training, training.compute(0, list(rows))


def test_loss_is_that_of_two_times_on_the_line_of_noise_and_target() -> None:
    """The step's own terms against the same made here, from its match, its cells' draws and the same dropout."""
    config = config_with(stages=4, kimg=1.0, huber=0.01)
    training, result = first_step(config)
    module, table = training.parallel.module, load_table(config.data)
    turns = training.parallel.assignment.turns_of(config.seed, 0, size=CELL_SIZE, rank=0)
    for number, turn in enumerate(turns):
        cell, labels = turn.cell, table.labels[result.row_ids[number]]
        target, noise = (
            table.rows(result.match.rows[cell.slots]),
            cell.normal("noise", table.image_shape, torch.device("cpu")),
        )
        t = draw_times(config.time, cell, 0)
        r, apart = nearer_times(config.consistency, t, 0)
        with torch.no_grad():
            with cell.dropout(torch.device("cpu")):
                far = module(interpolate(target, noise, t), t, labels)
            with cell.dropout(torch.device("cpu")):
                near = module(interpolate(target, noise, r), r, labels)
        near = torch.where((r > 0)[:, None, None, None], near, target)
        wanted = (flow_distances(far, near, huber=0.01, scales=1) / apart).mean()
        correlation = (target.double() * noise).mean() / 0.5
        assert float(result.losses[number, -1]) == pytest.approx(float(correlation), rel=1e-4)
        terms = dict(zip(("total", "flow", "feature"), result.losses[number], strict=False))
        assert terms["flow"] == terms["feature"] == 0
        torch.testing.assert_close(terms["total"], 3 * wanted)


def test_without_stages_the_image_itself_is_the_target() -> None:
    _, result = first_step(config_with(stages=0))
    assert (result.losses[:, 1] > 0).all()  # of the flow
    _, consistent = first_step(config_with(stages=1))
    assert (consistent.losses[:, 1] == 0).all()
    assert float(consistent.gradient_norm) > 0


def test_noise_may_stand_for_samples_in_the_coupling() -> None:
    config = config_with(stages=4, coupled_by="noise")
    training, result = first_step(config)
    table = load_table(config.data)
    cells = [turn.cell for turn in training.parallel.assignment.turns_of(config.seed, 0, size=CELL_SIZE, rank=0)]
    noise = torch.cat([cell.normal("noise", table.image_shape, torch.device("cpu")) for cell in cells])
    torch.testing.assert_close(result.match.generated, torch.nn.functional.normalize(noise.flatten(1), dim=1))
