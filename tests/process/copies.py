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


def in_step(directory: Path, *statements: str) -> dict[str, str]:
    """The same, with statements at the beginning of each step; ``self.step`` is the number of steps made so far."""
    line = '            watch.progress(f"in step {self.step + 1}")\n'
    return changed(directory, "trainer.py", line, line + "".join(f"            {each}\n" for each in statements))


def held_in_step(directory: Path, step: int, until: Path) -> dict[str, str]:
    """The same, whose ranks wait for a file at the beginning of a step."""
    waits = f"while self.step == {step} and not __import__('os').path.exists('{until}'): __import__('time').sleep(0.05)"
    return in_step(directory, waits)


def while_encoding(directory: Path, statement: str) -> dict[str, str]:
    """The same, with a statement before each block of images that the bank encodes."""
    line = "    images = table.rows(torch.arange(begin, end)).to(world.device)\n"
    return changed(directory, "features/bank.py", line, f"    {statement}\n{line}")
