"""When a worker process crashes, the test it was running fails and every other test runs once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOOKS = """\
import sys
sys.path.insert(0, {root!r})
from tests.workers import Failures, FilesInTurn
def pytest_configure(config): config.pluginmanager.register(Failures(config))
def pytest_xdist_make_scheduler(config, log): return FilesInTurn(config, log)
"""
# A letter per test: P passes, D kills its worker. The other worker is still busy then, or has already finished.
SUITES = {
    "others are left": {"test_a": "PDP", "test_b": "PPP", "test_c": "PPP"},
    "one is left": {"test_a": "DP", "test_b": "P"},
    "none is left": {"test_a": "PPD", "test_b": "P"},
    "it dies twice": {"test_a": "DPDP", "test_b": "PP"},
    "both die": {"test_a": "DPP", "test_b": "DPP"},
    "both die, one later": {"test_a": "DPPP", "test_b": "PDPP"},
}
BODIES = {"P": "pass", "D": "import os; os._exit(1)"}


@pytest.mark.parametrize("name", SUITES)
def test_every_test_ends_once_although_workers_crash(name: str, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(HOOKS.format(root=str(ROOT)))
    for file, tests in SUITES[name].items():
        lines = [f"def test_{number}(): {BODIES[kind]}" for number, kind in enumerate(tests)]
        (tmp_path / f"{file}.py").write_text("\n".join(lines) + "\n")
    options = ["-v", "-p", "xdist", "--numprocesses", "2", "--dist", "loadscope", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, "--rootdir", str(tmp_path), str(tmp_path)]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # importing the others takes most of the time
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, done.stdout
    kinds = "".join(SUITES[name].values())
    assert f"{kinds.count('D')} failed, {kinds.count('P')} passed" in done.stdout
    assert len(re.findall(r"^FAILED \S+ \?\?\?: worker .* crashed", done.stdout, re.MULTILINE)) == kinds.count("D")
