"""Files for the stacks of ranks that made no progress: ``stacks/`` in the run directory.

A rank keeps its file, such as ``rank-3.txt``, open while it is watched: once stuck, it could not open one. The first
line says how far the rank came. A rank that ends well removes its file; for one that was killed, the next start does.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gfgw_prod.process.standard_streams import Warned

WIDTH = 240  # of the first line, which is overwritten in place
NAMED = 8  # at most so many ranks are listed in a message


class StacksFile:
    """The file of this rank.

    Raises:
        OSError: if it cannot be created.
    """

    def __init__(self, run_dir: Path, rank: int):
        self.path = run_dir / "stacks" / f"rank-{rank}.txt"
        self._who = f"rank {rank}, process {os.getpid()} on {socket.gethostname()}"
        self.path.parent.mkdir(exist_ok=True)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self.describe("starting")
        os.lseek(self._fd, WIDTH, os.SEEK_SET)

    def fileno(self) -> int:
        """The descriptor for ``faulthandler``, which writes after the first line."""
        return self._fd

    def describe(self, doing: str) -> None:
        """Write the first line: how far this rank has come by now."""
        now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        line = f"{self._who}: last seen at work at {now}, {doing}".encode()
        with suppress(OSError):  # a full or missing disk
            os.pwrite(self._fd, line[: WIDTH - 1].ljust(WIDTH - 1) + b"\n", 0)

    def discard(self) -> None:
        """Remove the file, and the directory if it was the last."""
        with suppress(OSError):
            self.path.unlink()
            self.path.parent.rmdir()

    def close(self) -> None:
        """Close the file. Only where nothing writes to it any more: another file may get its descriptor."""
        os.close(self._fd)


def keep_stacks_of_hung_ranks(run_dir: Path, report: Callable[[str], None]) -> bool:
    """Report in one line which ranks of the last start left stacks, and rename their files so that they stay.

    Returns:
        Whether any rank did.
    """
    files = {int(file.stem[5:]): file for file in run_dir.glob("stacks/rank-*.txt") if file.stem[5:].isdigit()}
    stuck = []
    with suppress(OSError):
        when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(max((f.stat().st_mtime for f in files.values()), default=0)))
        for rank, file in sorted(files.items()):
            if file.stat().st_size > WIDTH:
                file.rename(file.with_name(f"{when}-{file.name}"))
                stuck.append(rank)
            else:
                file.unlink()
    if stuck:
        several = len(stuck) > 1
        ranks = ", ".join(map(str, stuck[:NAMED])) + (f" and {len(stuck) - NAMED} more" if len(stuck) > NAMED else "")
        place = run_dir / "stacks" / f"{when}-rank-{'*' if several else stuck[0]}.txt"
        whose = "their" if several else "its"
        report(Warned(f"rank{'s' * several} {ranks} made no progress in the last start; {whose} stacks are in {place}"))
    else:
        with suppress(OSError):
            (run_dir / "stacks").rmdir()
    return bool(stuck)
