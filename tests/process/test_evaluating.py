"""``evaluate`` and ``sample`` on several ranks, and evaluations while training."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from gfgw_prod.resilience.run_status import status_of
from gfgw_prod.settings.evaluation import FIGURES
from gfgw_prod.telemetry.catalogue import BY_TAG

from . import runs

NUM = "700"  # blocks of 256: two turns of two ranks, the last of them short


def gfgw(*arguments: str, ranks: int = 1) -> runs.Outcome:
    """Run a command that must succeed, on one rank or several."""
    command = [*runs.GFGW, *arguments]
    outcome = runs.execute(command) if ranks == 1 else runs.execute_ranks(ranks, command)
    assert outcome.code == 0, outcome.stderr
    return outcome


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two sharded ranks with evaluations."""
    run_dir = tmp_path_factory.mktemp("measured") / "run"
    options = (
        "--evaluation.every-kimg",
        str(runs.EVERY_STEP_KIMG),
        "--evaluation.num",
        NUM,
        "--evaluation.metrics",
        runs.METRICS,
    )
    outcome = runs.train(run_dir, *options, "--distributed.strategy", "fsdp", steps=2, ranks=2)
    assert re.search(
        r" figures:    lower is better: fd .*; higher is better: precision .* \(700 samples\)$", outcome.stderr, re.M
    )
    return run_dir


def test_figures_are_the_same_alone_on_several_ranks_and_while_training(measured: Path) -> None:
    outcomes = [gfgw("evaluate", str(measured), "--num", NUM, "--json", ranks=ranks) for ranks in (1, 2, 3)]
    assert outcomes[0].stdout == outcomes[1].stdout == outcomes[2].stdout  # the third rank keeps no rows
    found = json.loads(outcomes[0].stdout)
    assert {f"evaluation/{name}" for name in FIGURES} <= BY_TAG.keys()
    numbers = {f"evaluation/{name}": found[name] for name in FIGURES if name in found}
    assert len(numbers) == 11
    records = [each for each in runs.records(measured) if "evaluation/fd" in each]
    assert [each["step"] for each in records] == [1, 2]
    assert status_of(measured).fd_in == f"pixels, {NUM}"
    compared = EventAccumulator(str(measured / "tensorboard")).Reload().PluginTagToContent("hparams")
    begun = plugin_data_pb2.HParamsPluginData.FromString(compared["_hparams_/session_start_info"]).session_start_info
    assert begun.hparams["evaluation.features"].string_value == "pixels"  # what `auto` came to
    assert numbers.items() <= records[1].items()
    assert records[0]["evaluation/fd"] != records[1]["evaluation/fd"]
    assert found["step"] == 2
    assert found["data"]["rows"] == 1797
    assert set(found["features"].values()) == {"pixels"}
    # One line each for the weights that would be needed.
    lines = [line for line in outcomes[0].stderr.splitlines() if "are missing" in line]
    assert len(lines) == 2
    assert "weights-inception-2015-12-05-6726825d.pth" in lines[0]


def test_table_names_every_figure_and_its_features(measured: Path) -> None:
    printed = runs.printed_by("evaluate", str(measured), "--num", "50", "--metrics", "fd,pr", "--raw")
    for word in ("fd", "precision", "recall", "pixels", "weights as trained"):
        assert word in printed
    assert "kid" not in printed


def test_samples_are_the_same_files_on_any_ranks_in_any_batches(measured: Path, tmp_path: Path) -> None:
    options = ("--num", "70", "--seed", "5", "--classes", "3,7-9")
    variants = {
        "alone": ((), 1),
        "batches": (("--batch-size", "1"), 1),
        "ranks": (("--batch-size", "20"), 2),
    }
    for name, (more, ranks) in variants.items():
        sample = ("sample", str(measured), *options, "--out", str(tmp_path / name), *more)
        gfgw(*sample, ranks=ranks) if ranks > 1 else runs.printed_by(*sample)
    alone, batches, ranks = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("alone", "batches", "ranks")
    )
    assert len(alone) == 71
    assert alone == batches == ranks
    assert json.loads(alone.pop("dataset.json"))["labels"] == [
        [name, (3, 7, 8, 9)[i % 4]] for i, name in enumerate(sorted(alone))
    ]
