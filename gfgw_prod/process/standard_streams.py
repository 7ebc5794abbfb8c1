"""Standard streams that are closed, or can no longer be written. Imports nothing heavy."""

from __future__ import annotations

import os
import sys


def open_closed_streams() -> None:
    """Gives a standard stream that is closed the null device.

    Else the next file to be opened, a checkpoint's say, would get its number, and what libraries print would go there.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            _discard(number)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def log(line: str) -> None:
    """One line on standard error, as far as it can be written. A name may hold line breaks and control characters."""
    try:
        print(printable(line) + "\n", end="", file=sys.stderr, flush=True)  # one write, also where nothing is buffered
    except OSError:  # a full disk, a pipe that nobody reads: the exit code tells enough
        _discard(2)


def printable(text: str) -> str:
    """A text with line breaks and control characters spelt out."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def output_error(*, failed: bool = False) -> OSError | None:
    """Why standard output cannot be written, if it cannot; what was printed is then given up.

    Args:
        failed: something could not be written: try with a line's end whether it was this, as it may not be buffered.
    """
    try:
        print(end="\n" if failed else "", flush=True)
    except OSError as error:
        _discard(1)  # the interpreter would try once more, and complain
        return error
    return None


def _discard(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
    os.set_inheritable(number, True)
