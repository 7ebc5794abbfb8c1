"""A rank that exits leaves its stacks if it was silent beyond the limit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LIMIT_SECONDS = 2.0  # the timer expires half a second later, with the same outcome
SCRIPT = """
import sys, time
from pathlib import Path
from gfgw_prod.process.watchdog import watch
with watch.over(float(sys.argv[2]), Path(sys.argv[1]), rank=1):
    watch.progress("in step 3")
    time.sleep(float(sys.argv[3]))
    raise ConnectionError("a peer has gone")
"""


@pytest.mark.parametrize(("silent_seconds", "stuck"), [(0.0, False), (LIMIT_SECONDS + 0.1, True)])
def test_process_that_loses_its_peers_leaves_stacks_only_if_it_was_silent_beyond_the_limit(
    tmp_path: Path, silent_seconds: float, stuck: bool
) -> None:
    arguments = [str(tmp_path), str(LIMIT_SECONDS), str(silent_seconds)]
    ended = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    left = [file.read_text() for file in tmp_path.rglob("rank-1.txt")]
    assert len(left) == stuck
    assert all("rank 1, process" in text and "most recent call first" in text for text in left)
