"""A wrong setting or argument: one line that names it, exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import runs

# Name of the case: arguments ({} is a scratch directory), words of the complaint.
CASES: dict[str, tuple[list[str], list[str]]] = {
    "no command": ([], ["train", "sample", "inspect", "doctor"]),
    "unknown command": (["trian"], ["trian", "train"]),
    "unknown setting": (["train", "--train.batchsize", "32"], ["train.batchsize", "train.batch_size"]),
    "setting without its section": (["train", "--cell-size", "32"], ["cell_size", "train.cell_size"]),
    "setting without a value": (["train", "--train.cell-size"], ["train.cell-size"]),
    "stray word": (["train", "32"], ["'32'"]),
    "zero": (["train", "--train.batch-size", "0"], ["train.batch_size", "greater than 0"]),
    "above the range": (["train", "--generator.dropout", "1.5"], ["generator.dropout", "less than 1"]),
    "no number": (["train", "--train.total-kimg", "lots"], ["train.total_kimg", "number", "lots"]),
    "not a number": (["train", "--optimizer.lr", "nan"], ["optimizer.lr", "finite"]),
    "no such choice": (["train", "--transport.scope", "half"], ["transport.scope", "subset", "full"]),
    "range upside down": (["train", "--time.stage1-range", "0.9,0.1"], ["time.stage1_range", "increasing"]),
    "batch not a multiple of the cell": (
        ["train", "--train.batch-size", "100", "--train.cell-size", "16"],
        ["train.batch_size (100)", "train.cell_size (16)"],
    ),
    "no port": (["train", "--telemetry.prometheus-port", "70000"], ["telemetry.prometheus_port", "65535"]),
    "no such file": (["train", "--config", "{}/none.yaml"], ["--config", "{}/none.yaml"]),
    "directory for a file": (["train", "--config", "{}"], ["--config", "{}"]),
    "not YAML": (["train", "--config", "{}/broken.yaml"], ["--config", "{}/broken.yaml", "YAML"]),
    "not text": (["train", "--config", "{}/binary.yaml"], ["--config", "{}/binary.yaml"]),
    "a list": (["train", "--config", "{}/list.yaml"], ["--config", "{}/list.yaml", "mapping"]),
    "unknown setting in the file": (["train", "--config", "{}/typo.yaml"], ["generator.chanels", "generator."]),
    "unknown section in the file": (["train", "--config", "{}/section.yaml"], ["generater", "generator"]),
    "wrong value in the file": (["train", "--config", "{}/value.yaml"], ["data.source", "mnist", "digits"]),
    "sample without --out": (["sample", "{}"], ["--out"]),
    "sample of nothing": (["sample", "{}", "--out", "{}/out"], ["{}", "no checkpoint"]),
    "sample of no images": (["sample", "{}", "--num", "0", "--out", "{}/out"], ["--num", "at least 1"]),
    "inspect of nothing": (["inspect", "{}/none"], ["{}/none", "no checkpoint"]),
    "inspect with a setting": (["inspect", "{}", "--seed", "1"], ["--seed"]),
    "more ranks planned than cells": (
        ["train", "--dry-run", "--ranks", "3", "--train.batch-size", "32", "--train.cell-size", "16"],
        ["--ranks", "2 cells"],
    ),
}

FILES = {
    "broken.yaml": b"train: [1, 2\n",
    "binary.yaml": b"\xff\xfe\x00\x01",
    "list.yaml": b"- train\n- data\n",
    "typo.yaml": b"generator:\n  chanels: 3\n",
    "section.yaml": b"generater:\n  dropout: 0.1\n",
    "value.yaml": b"data:\n  source: mnist\n",
}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("scratch")
    for name, content in FILES.items():
        (directory / name).write_bytes(content)
    return directory


@pytest.fixture(scope="module")
def outcomes(scratch: Path) -> dict[str, runs.Outcome]:
    def command(arguments: list[str]) -> runs.Outcome:
        return runs.execute([*runs.GFGW, *(argument.replace("{}", str(scratch)) for argument in arguments)])

    return runs.execute_all({name: lambda a=arguments: command(a) for name, (arguments, _) in CASES.items()})


@pytest.mark.parametrize("case", CASES)
def test_refused_in_one_line_that_names_what_is_wrong(
    outcomes: dict[str, runs.Outcome], scratch: Path, case: str
) -> None:
    complaint = outcomes[case].complaint
    assert complaint.startswith("gfgw: ")
    for words in CASES[case][1]:
        assert words.replace("{}", str(scratch)) in complaint


def test_refusals_leave_no_files(outcomes: dict[str, runs.Outcome], scratch: Path) -> None:
    assert outcomes
    assert {path.name for path in scratch.iterdir()} == FILES.keys()
