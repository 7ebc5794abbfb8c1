"""The trace of a few steps."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch

from gfgw_prod.training.profiling import StepProfiler


def take_steps(directory: Path, first: int, count: int, recorded: int) -> list[str]:
    lines: list[str] = []
    profiler = StepProfiler(first, recorded, directory, lines.append)
    for step in range(first, first + count):
        profiler.before(step)
        torch.ones(3) + step
        profiler.after(step)
    return lines


def test_steps_after_the_first_two_are_recorded(tmp_path: Path) -> None:
    lines = take_steps(tmp_path / "profile", first=10, count=6, recorded=3)
    (file,) = (tmp_path / "profile").iterdir()
    assert file.name == "steps-13-to-15.pt.trace.json.gz"
    assert lines == [f"profile:    {file}"]
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    assert [event.get("name") for event in events].count("aten::add") == 3


def test_nothing_is_recorded_unless_asked_for(tmp_path: Path) -> None:
    assert take_steps(tmp_path / "profile", first=0, count=4, recorded=0) == []
    assert not (tmp_path / "profile").exists()


def test_trace_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "profile").write_text("a file")
    (line,) = take_steps(tmp_path / "profile", first=0, count=4, recorded=1)
    assert "could not be written" in line
