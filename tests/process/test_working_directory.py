"""Files of the working directory that are named like Python's modules, or this package, are not imported."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from ..image_files import write_folder
from . import runs

HIDING = ("queue", "random", "signal", "struct", "threading")
GFGW = str(Path(sys.executable).with_name("gfgw"))


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A directory with modules that end the process that imports them."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    for name in HIDING:
        (place / f"{name}.py").write_text('raise SystemExit("imported from the working directory")\n')
    return place


def test_launch_script_runs_its_own_code(elsewhere: Path, tmp_path: Path) -> None:
    (elsewhere / "gfgw_prod").mkdir()
    (elsewhere / "gfgw_prod" / "__init__.py").write_text('raise SystemExit("the code of another clone")\n')
    refused = runs.execute(runs.elastic(tmp_path / "run", "--train.batch-size", "0"), {"NPROC": "2"}, cwd=elsewhere)
    assert "train.batch_size should be" in refused.complaint


@pytest.mark.parametrize("program", [[GFGW], list(runs.GFGW)], ids=["gfgw", "module"])
def test_command_and_its_processes_import_nothing_from_there(
    elsewhere: Path, tmp_path: Path, program: list[str]
) -> None:
    source = write_folder(tmp_path / "images", np.zeros((4, 3, 8, 8), np.uint8), [0, 1, 0, 1])
    data = ("--data.source", "folder", "--data.path", str(source))
    packed = runs.execute([*program, "pack", str(tmp_path / "pack"), *data, "--workers", "2"], cwd=elsewhere, anew=True)
    assert (packed.code, packed.stderr) == (0, "")
