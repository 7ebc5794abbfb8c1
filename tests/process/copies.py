"""Copies of the package with one line changed: faults from outside, which the product knows nothing of."""

from __future__ import annotations

import shutil
from pathlib import Path

from . import runs


def changed(directory: Path, module: str, line: str, replacement: str) -> dict[str, str]:
    """The environment in which a process runs a copy of the package with a line of a module replaced."""
    unwanted = shutil.ignore_patterns("__pycache__")
    package = shutil.copytree(runs.ROOT / "gfgw_prod", directory / "gfgw_prod", ignore=unwanted)
    source = (package / module).read_text(encoding="utf-8")
    assert source.count(line) == 1
    (package / module).write_text(source.replace(line, replacement), encoding="utf-8")
    return {"PYTHONPATH": str(directory), "PYTHONSAFEPATH": "1"}


def while_encoding(directory: Path, statement: str) -> dict[str, str]:
    """The same, with a statement before each block of images that the bank encodes."""
    line = "    images = table.rows(torch.arange(begin, end)).to(world.device)\n"
    return changed(directory, "features/bank.py", line, f"    {statement}\n{line}")
