"""Standard streams that may be closed or unwritable, and ``log``. Imports nothing heavy."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Level = Literal["info", "warning", "error"]


class Warned(str):
    """A line that ``log`` writes as a warning: something failed, and the run goes on."""


class _Form:
    """How lines are written: with times; as JSON with these labels, unless they are ``None``."""

    timed: bool = False
    labels: dict[str, str | int] | None = None


_form = _Form()


def prepare_streams() -> None:
    """Open the null device in place of each closed standard stream, and escape what an output's encoding lacks.

    Otherwise the next file to be opened, such as a checkpoint, would get the number of a closed stream, and what
    libraries print would end up in it. And a finished command would fail over the name of a file that it prints.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            _discard(number)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def log(line: str, level: Level = "info") -> None:
    """Write one line to standard error, if possible. Line breaks and control characters in it are escaped."""
    level = "warning" if isinstance(line, Warned) else level
    try:
        print(_formatted(line, level) + "\n", end="", file=sys.stderr, flush=True)  # one write, even if unbuffered
    except OSError:  # a full disk, a pipe that nobody reads: the exit code says enough
        _discard(2)


def log_as_json(run: str, **labels: str | int) -> None:
    """From now on write each line as a JSON object, for programs that collect logs."""
    _form.labels = {"host": os.uname().nodename, **labels, "run": run}


def log_times() -> None:
    """From now on begin each line of text with the time, unless a person reads it in a terminal."""
    _form.timed = True


@contextmanager
def log_form_restored() -> Iterator[None]:
    """Begin the body with plain lines, and write lines as before after it."""
    before = _form.timed, _form.labels
    _form.timed, _form.labels = False, None
    try:
        yield
    finally:
        _form.timed, _form.labels = before


def logs_text() -> bool:
    """Whether lines are written as text."""
    return _form.labels is None


def _formatted(line: str, level: Level) -> str:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if _form.labels is not None:
        import json

        return json.dumps({"time": now, "level": level, **_form.labels, "message": line})
    return printable(line if not _form.timed or sys.stderr.isatty() else f"{now} {line}")


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
