"""Copies of the package with one line changed, to bring faults into a process from outside."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from . import runs


class Line(NamedTuple):
    """Lines of a module of the package that stand there exactly once; tests/unit/test_copies.py checks it."""

    module: str
    text: str


PROCESS_BEGINS = Line("__main__.py", "    die_with_agent()\n")
BLOCK_IS_ENCODED = Line(
    "features/bank.py",
    "                images = table.rows(torch.arange(begin, min(begin + encode_rows, self.total)))\n",
)
RANK_IS_BUILT_ALONE = Line(
    "training/kept.py",
    "        kept = cls.of(build(config, world, table, log, fresh=False, together=alone), NO_STEP)\n",
)
STEP_BEGINS = Line("training/run.py", '            watch.progress(f"in step {self.step + 1}")\n')
STEP_IS_MADE = Line("training/run.py", "            self.reporter.show_step(self.images)\n")
STATE_IS_MADE_SAFE = Line(
    "training/run.py",
    "            self.kept.make_safe(self.reporter.productive_seconds())\n"
    "            self.membership.publish_ready("
    "self.reached, self.kept.ranks_multiple, config.cells, self.kept.facts)\n",
)
STEP_IS_JUDGED = Line("training/checked_step.py", '        self._step.clock.lap("check")\n')
RUN_CLOSES = Line("training/trainer.py", "                run.close()\n")
UPLOAD_BEGINS = Line("checkpoint/uploading.py", "        path = self._target.begin(checkpoint.name, self._token)\n")
ROWS_ARE_READ = Line(
    "data/sources.py", "        if isinstance(self.images, Tensor):\n            found = self.images[ids]\n"
)
WORKERS_WERE_LOOKED_AT = Line(
    "launcher/agent.py", "        is_healthy = not codes or self._replace_lost(worker_group)\n"
)
SEED_IS_DERIVED = Line("distributed/cells.py", '    text = "/".join([str(seed), stream, *map(str, position)])\n')
ALL = [value for value in globals().values() if isinstance(value, Line)]


def changed(directory: Path, line: Line, *, before: str = "", after: str = "") -> dict[str, str]:
    """The environment in which a process runs a copy of the package with text added before and after a line."""
    unwanted = shutil.ignore_patterns("__pycache__")
    module = shutil.copytree(runs.ROOT / "gfgw_prod", directory / "gfgw_prod", ignore=unwanted) / line.module
    source = module.read_text(encoding="utf-8")
    assert source.count(line.text) == 1, line
    module.write_text(source.replace(line.text, before + line.text + after), encoding="utf-8")
    return {"PYTHONPATH": str(directory), "PYTHONSAFEPATH": "1"}


def in_step(directory: Path, *statements: str) -> dict[str, str]:
    """Runs statements at the beginning of each step; ``self.step`` is the number of finished steps."""
    return changed(directory, STEP_BEGINS, after="".join(f"            {each}\n" for each in statements))


def held_in_step(directory: Path, step: int, until: Path) -> dict[str, str]:
    """Holds the ranks after that many steps until a file exists."""
    waits = f"while self.step == {step} and not __import__('os').path.exists('{until}'): __import__('time').sleep(0.05)"
    return in_step(directory, waits)


def slowed(directory: Path, seconds: float = 0.5) -> dict[str, str]:
    """Makes each step sleep, which leaves time to strike between two steps and uses no core."""
    return in_step(directory, f"__import__('time').sleep({seconds})")


def while_encoding(directory: Path, statement: str) -> dict[str, str]:
    """Runs a statement before the bank encodes each block of images."""
    return changed(directory, BLOCK_IS_ENCODED, before=f"{16 * ' '}{statement}\n")
