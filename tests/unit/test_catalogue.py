"""Every metric that the code reports is in the catalogue, and every metric of the catalogue is reported."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

import gfgw_prod
from gfgw_prod.distributed.world import World
from gfgw_prod.resilience.starts import StartCounter
from gfgw_prod.settings import reading
from gfgw_prod.settings.evaluation import EvaluationMetric
from gfgw_prod.telemetry.catalogue import BY_TAG, CATALOGUE, GPU
from gfgw_prod.telemetry.exposition import AGE, BUILD
from gfgw_prod.telemetry.startup import Startup
from gfgw_prod.training.objective import Losses
from gfgw_prod.training.resuming import resume
from gfgw_prod.training.run import Run

BATCH = 16
KIMG = BATCH / 1000
# Every part of a run that needs no downloaded weights, over steps of both kinds: at t = 1, and before it.
SETTINGS: dict[str, Any] = {
    "train": {"batch_size": BATCH, "cell_size": 8, "total_kimg": 2 * KIMG, "one_step_share": 0.5},
    "generator": {
        "model_channels": 8,
        "channel_mult": [1],
        "num_blocks": 1,
        "attention_resolutions": [],
        "conditional": True,
    },
    "features": {"extractor": "pixels"},
    "loss": {term: 0.1 for term in Losses._fields[1:] if term != "lpips"},
    "consistency": {"stages": 2},
    "transport": {"scope": "full", "dual": "persistent", "tolerance": 1e-2},
    "evaluation": {"every_kimg": KIMG, "num": 40, "metrics": [*{*get_args(EvaluationMetric)} - {"fid", "fd-dinov2"}]},
    "checkpoint": {"every_kimg": KIMG},
    "telemetry": {"log_every_kimg": KIMG, "samples_every_kimg": 1000, "sample_grid": 1, "progress": "off"},
}
ELSEWHERE = {
    *{"loss/lpips", "evaluation/fid", "evaluation/fd_dinov2"},  # need downloaded weights
    *{"startup/launcher", "startup/rendezvous", "startup/checkpoint"},  # need a launcher, other ranks, a resume
    *{"run/checkpoint_failures", "run/upload_failures"},
}
LIVE = {"run/started", "run/evaluating", AGE, BUILD}  # served by the endpoint, never recorded


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Tags that a run with every optional part on reports, uploads included."""
    place = tmp_path_factory.mktemp("catalogue")
    config = reading.resolve(
        SETTINGS,
        {"run": {"dir": str(place / "run")}, "checkpoint": {"upload_to": str(place / "uploads")}},
    )
    world = World(rank=0, world_size=1, device=torch.device("cpu"))
    run = Run(config, world, StartCounter(config.run.dir, config.resilience.max_no_progress, world), Startup())
    resume(run)
    assert run.loop()
    run.finish()
    run.close()
    lines = (config.run.dir / "stats.jsonl").read_text(encoding="utf-8").splitlines()
    return {tag for line in lines for tag in json.loads(line)} - {"step", "images", "time"}


def test_every_reported_tag_is_in_the_catalogue(reported: set[str]) -> None:
    assert reported - BY_TAG.keys() == set()


def test_every_metric_of_the_catalogue_is_reported(reported: set[str]) -> None:
    expected = {metric.tag for metric in CATALOGUE if metric.when != GPU} - ELSEWHERE - LIVE
    assert expected - reported == set()


def test_every_loss_term_is_in_the_catalogue() -> None:
    assert {f"loss/{term}" for term in Losses._fields} <= BY_TAG.keys()


def test_every_tag_in_the_source_is_in_the_catalogue() -> None:
    """Also a tag that a run reports rarely, or only on GPUs."""
    groups = "|".join({metric.tag.partition("/")[0] for metric in CATALOGUE})
    package = Path(gfgw_prod.__file__).parent
    for file in package.rglob("*.py"):
        for tag in re.findall(rf'(?<!f)"((?:{groups})/[a-z_/]+)"', file.read_text(encoding="utf-8")):
            assert tag in BY_TAG, f"{tag} of {file.relative_to(package)} is not in telemetry/catalogue.py"
