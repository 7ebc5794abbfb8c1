"""One rank per node reports why its ranks exit, once per start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gfgw_prod.process import first_report

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="ranks find the pipe through /proc")
RANK = "from gfgw_prod.process.first_report import report_first; report_first('why', without_launcher={alone})"
# A child of a rank has the rank's environment, and another parent.
CHILD = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', sys.argv[1]]).returncode)"


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of the pipe of this process, which plays the launcher."""
    monkeypatch.setenv(first_report.PIPE, "")  # restored at the end: other tests start processes, too
    ends = first_report._pipe.__wrapped__()  # a pipe of this test alone
    monkeypatch.setattr(first_report, "_pipe", lambda: ends)
    return os.environ[first_report.PIPE]


def reports(pipe: str, ranks: int = 1, *, without_launcher: bool = False, of_a_child: bool = False) -> list[str]:
    """What ranks that fail at the same time report."""
    script = RANK.format(alone=without_launcher)
    command = [sys.executable, "-c", *([CHILD] if of_a_child else []), script]
    environment = os.environ | {first_report.PIPE: pipe}
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) for _ in range(ranks)]
    return sorted(process.communicate()[1].strip() for process in processes)


def test_one_rank_of_each_start_reports(pipe: str) -> None:
    for _ in range(2):
        first_report.allow_one_report()
        assert reports(pipe, 3) == ["", "", "why"]
    first_report.allow_one_report()
    first_report.allow_one_report()  # nobody reported in between: still one report is allowed
    assert [reports(pipe, without_launcher=True) for _ in range(2)] == [["why"], [""]]


def test_child_of_a_rank_does_not_use_up_the_report(pipe: str) -> None:
    first_report.allow_one_report()
    assert reports(pipe, of_a_child=True) == [""]
    assert reports(pipe, of_a_child=True, without_launcher=True) == ["why"]
    assert reports(pipe) == ["why"]


@pytest.mark.parametrize("nowhere", ["", f"/proc/{os.getpid()}/fd/no-such", "/dev/null"], ids=["", "closed", "null"])
@pytest.mark.parametrize("without_launcher", [True, False])
def test_without_a_pipe_the_caller_decides(nowhere: str, without_launcher: bool) -> None:
    assert reports(nowhere, without_launcher=without_launcher) == ["why" if without_launcher else ""]
