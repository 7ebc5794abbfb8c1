"""The commands of the README and docs/ work as written, in a copy of the repository with a short digits run."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import image_files, pages

from . import clones, runs

FEWER = 2000  # samples than the pages' 50,000
LEAVE_NOTHING = "trap 'exit 1' TERM; trap 'kill $(jobs -p) 2>/dev/null' EXIT\n"  # also if it is stopped


def shell(text: str, where: Path, environment: dict[str, str]) -> runs.Outcome:
    return runs.execute(["bash", "-c", text], environment, cwd=where)


@pytest.mark.timeout(600)
def test_commands_of_the_manual_work_as_written(tmp_path: Path) -> None:
    where, environment = clones.clone(tmp_path / "a clone")
    reader = np.random.default_rng(0).integers(0, 256, (8, 3, 70, 80), dtype=np.uint8)
    image_files.write_class_folders(where / "DIR", reader, [0, 1] * 4)
    walk = pages.script("two-nodes.md", "Two nodes, a stop, a kill").replace("29400", str(runs.free_port()))
    walk = walk.replace('"910$1"', f"$(({runs.free_port()} + $1))")
    walk = walk.replace("RDZV_LAST_CALL=10", "RDZV_LAST_CALL=30")  # a late node would join the next round
    outcomes = runs.execute_all(
        {
            "two nodes": lambda: shell(LEAVE_NOTHING + walk, where, environment),
            "others": lambda: one_by_one(where, environment),
        }
    )
    walked = outcomes["two nodes"]
    assert walked.code == 0, walked.stdout + walked.stderr
    assert walked.stdout.count("exit code 75") == 2
    assert "picture:    runs/two-nodes/samples.png" in walked.stdout
    assert (where / "runs" / "two-nodes" / "samples.png").stat().st_size > 1000
    logs = "".join((where / f"node-{node}.log").read_text() for node in (0, 1))
    assert logs.count("resumed at") == 1  # after the stop
    assert "ranks were lost: now 1, before 2" in logs  # after the kill

    last = max(runs.digests(where / "runs" / "digits"))
    assert runs.digests(where / "runs" / "two-nodes")[last] == runs.digests(where / "runs" / "digits")[last]

    for page, results in (("README.md", ["runs/digits.png"]), ("docs/python.md", ["samples.png", "runs/from-python"])):
        for example, result in zip(pages.code_blocks(pages.ROOT / page, "python"), results, strict=True):
            done = runs.execute([sys.executable, "-c", example], environment, cwd=where)
            assert done.code == 0, f"{example}\n{done.stderr}"
            assert (where / result).exists()
    assert re.fullmatch(r"True [0-9.]+\n", done.stdout)


def one_by_one(where: Path, environment: dict[str, str]) -> runs.Outcome:
    """Run every command in order. Returns the outcome of the last one."""
    for command in pages.RUN:
        outcome = shell(command.replace("50000", str(FEWER)), where, environment)
        assert outcome.code == 0, f"{command}\n{outcome.stdout}\n{outcome.stderr}"
        check(command, outcome, where)
    return outcome


def check(command: str, outcome: runs.Outcome, where: Path) -> None:
    """Check the effect that the page describes."""
    run = where / "runs" / "digits"
    match command:
        case "make train":
            assert (run / "samples.png").is_file()
            assert (run / "config.yaml").is_file()
            assert (run / "tensorboard").is_dir()
            assert "picture:    runs/digits/samples.png" in outcome.stderr + outcome.stdout
        case ".venv/bin/gfgw inspect runs/digits":
            assert outcome.stdout.count("step-") == 3  # checkpoint.keep
        case _ if command.endswith("--out samples"):
            assert len(json.loads((where / "samples" / "dataset.json").read_text())["labels"]) == FEWER
            assert len([*(where / "samples").rglob("*.png")]) >= FEWER
        case _ if " sample " in command:
            assert (run / "more-samples" / "grid.png").is_file()
        case _ if " export " in command:
            assert (where / "runs" / "digits.safetensors").is_file()
        case _ if " pack " in command:
            assert json.loads((where / "data" / "mine" / "pack.json").read_text())["image_shape"] == [3, 64, 64]
        case _ if "torchrun" in command and " evaluate " in command:
            assert json.loads(outcome.stdout)["num"] == FEWER
        case _ if " evaluate " in command:
            assert "recall" in outcome.stdout
        case _ if "elastic.sh" in command or "fsdp" in command:
            assert "nothing to do: already finished" in outcome.stderr
        case _ if "--dry-run" in command:
            assert "55,734,147" in outcome.stdout + outcome.stderr
