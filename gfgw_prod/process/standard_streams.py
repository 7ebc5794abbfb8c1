"""Standard streams that may be closed or unwritable, and ``log``. Imports nothing heavy."""

from __future__ import annotations

import os
import sys


def open_closed_streams() -> None:
    """Open the null device in place of each standard stream that is closed.

    Otherwise the next file to be opened, such as a checkpoint, would get the stream's number, and what libraries print
    would end up in it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            _discard(number)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def log(line: str) -> None:
    """Write one line to standard error, if possible. Line breaks and control characters in it are escaped."""
    try:
        print(printable(line) + "\n", end="", file=sys.stderr, flush=True)  # one write, even on an unbuffered stream
    except OSError:  # a full disk, a pipe that nobody reads: the exit code says enough
        _discard(2)


def printable(text: str) -> str:
    """A text with line breaks and control characters escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def output_error(*, probe: bool = False) -> OSError | None:
    """Flush standard output. Returns the error if that fails; what was printed is then discarded.

    Args:
        probe: write a newline first, to find out whether an earlier error was of this stream, which may be unbuffered.
    """
    try:
        print(end="\n" if probe else "", flush=True)
    except OSError as error:
        _discard(1)  # or the interpreter would flush once more at its end, and complain
        return error
    return None


def _discard(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
    os.set_inheritable(number, True)
