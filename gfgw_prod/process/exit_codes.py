"""The exit codes that every launcher honours."""

from __future__ import annotations

from typing import NamedTuple

FINISHED = 0
CRASHED = 1  # worth a restart
BAD_INPUT = 2  # will fail again: do not restart
PREEMPTED = 75  # state saved: requeue
CRASH_LOOP = 76  # no progress across restarts: stop and alert
INTERRUPTED = 130  # Ctrl-C, as shells have it


class Code(NamedTuple):
    """An exit code as docs/exit-codes.md tells it; ``number`` is a word where there are many."""

    number: int | str
    meaning: str
    launcher: str


CODES = (
    Code(FINISHED, "finished", "stop"),
    Code(BAD_INPUT, "bad configuration or input: will fail again; one line on stderr names the setting", "stop"),
    Code(
        PREEMPTED,
        "told to stop (SIGTERM, SIGUSR1; Ctrl-C to the launcher), state saved: the same command goes on from there",
        "queue the job again",
    ),
    Code(
        CRASH_LOOP,
        "no progress: checkpoints could not be saved, restarts brought no new one, or bad numbers came back",
        "stop; somebody must look",
    ),
    Code(
        INTERRUPTED,
        "Ctrl-C to a command that runs alone; a run or a packing goes on from what is saved",
        "as for a crash",
    ),
    Code(
        "other",
        "crash, a rank that made no progress, or standard output that nobody reads; commands that keep no state are "
        "ended by any signal, in a shell 128 and its number",
        "restart, then give up",
    ),
)


class UserError(ValueError):
    """Bad configuration or input. Its message is one line that names the setting and what would be right."""

    exit_code = BAD_INPUT


class NoProgressError(RuntimeError):
    """The run cannot keep what it does; to start it again would not help. Its message is one line."""

    exit_code = CRASH_LOOP


class HardwareError(RuntimeError):
    """The hardware computes wrongly, and not just once. Its message is one line."""

    exit_code = CRASHED  # worth a restart, if only on other hardware


def one_line(message: object, most: int | None = None) -> str:
    """A message of another library on one line of at most ``most`` characters. An empty error gives its type's name."""
    return " ".join(str(message).split())[:most] or type(message).__name__


def reason_of(error: BaseException) -> str:
    """Why something failed: the operating system's words, without path and number, else the error on one line."""
    return getattr(error, "strerror", None) or one_line(error, 300)
