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


def finished(tests: Path) -> subprocess.CompletedProcess[str]:
    """A session of two workers over the tests of a directory."""
    options = ["-v", "-p", "xdist", "--numprocesses", "2", "--dist", "loadscope", "--no-loadscope-reorder"]
    command = [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", "--rootdir", str(tests), str(tests)]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # importing the others takes most of the time
    return subprocess.run(command, cwd=tests, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", SUITES)
def test_every_test_ends_once_although_workers_crash(name: str, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(HOOKS.format(root=str(ROOT)))
    for file, tests in SUITES[name].items():
        lines = [f"def test_{number}(): {BODIES[kind]}" for number, kind in enumerate(tests)]
        (tmp_path / f"{file}.py").write_text("\n".join(lines) + "\n")
    done = finished(tmp_path)
    assert done.returncode == 1, done.stdout
    kinds = "".join(SUITES[name].values())
    assert f"{kinds.count('D')} failed, {kinds.count('P')} passed" in done.stdout
    assert len(re.findall(r"^FAILED \S+ \?\?\?: worker .* crashed", done.stdout, re.MULTILINE)) == kinds.count("D")


def test_image_waits_for_the_files_in_turn(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(HOOKS.format(root=str(ROOT)))
    log = tmp_path / "log"
    for file, (tests, seconds) in {"test_hangs": (3, 0.3), "test_image": (3, 0), "test_other": (20, 0.02)}.items():
        body = f"time.sleep({seconds}); print({file!r}, file=open({str(log)!r}, 'a'))"
        lines = ["import time", *(f"def test_{number}(): {body}" for number in range(tests))]
        (tmp_path / f"{file}.py").write_text("\n".join(lines) + "\n")
    assert finished(tmp_path).returncode == 0
    names = log.read_text().split()
    assert len(names) == 26
    assert names.index("test_image") > max(index for index, name in enumerate(names) if name == "test_hangs")
