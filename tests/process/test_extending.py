"""The examples of docs/extending.md apply to a copy of the package and train."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests import pages, sink_packages

from . import clones, runs

PAGE = pages.ROOT / "docs" / "extending.md"


def test_examples_of_extending_apply_and_train(tmp_path: Path) -> None:
    where, environment = clones.clone(tmp_path / "clone")
    files = re.findall(r"`((?:gfgw_prod/\w+/)?\w+\.py)`\n\n```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    assert len(files) == len(pages.code_blocks(PAGE, "python")) == 6
    shutil.copytree(pages.ROOT / "tests", where / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name, content in files:
        assert not (where / name).exists()
        (where / name).write_text(content)
    for patch in pages.code_blocks(PAGE, "diff"):
        subprocess.run(["git", "apply", "-p0", "-"], input=patch, text=True, check=True, cwd=where)
    catalogue = [sys.executable, "-m", "pytest", "-q", "tests/unit/test_catalogue.py"]
    checked = runs.execute(catalogue, environment, cwd=where)
    assert checked.code == 0, checked.stdout + checked.stderr
    [registered] = pages.code_blocks(PAGE, "toml")
    group = registered.replace('project.entry-points."gfgw_prod.sinks"', "gfgw_prod.sinks").replace('"', "")
    sink_packages.register(where, "csv-sink", group)
    [block] = [block for block in pages.shell_blocks() if block.page == PAGE.name]
    outcome = runs.execute(["bash", "-c", f"set -e; {block.text}"], environment, cwd=where)
    assert outcome.code == 0, outcome.stderr
    assert int(outcome.stdout) > 1000  # parameters, from the new command
    run_dir = where / "runs" / "extended"
    assert runs.losses(run_dir)[4]["loss/contrast"] > 0
    assert runs.records(run_dir)[-1]["evaluation/spread"] > 0
    assert len((run_dir / "losses.csv").read_text().splitlines()) == len(runs.losses(run_dir))
