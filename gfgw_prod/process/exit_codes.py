"""The exit codes that every launcher acts on, and the errors that end a run with one of them."""

from __future__ import annotations

from typing import NamedTuple

FINISHED = 0
CRASHED = 1  # worth a restart
BAD_INPUT = 2  # would fail again: do not restart
PREEMPTED = 75  # state saved: requeue
CRASH_LOOP = 76  # no progress across restarts: stop and alert
INTERRUPTED = 130  # Ctrl-C, the code that shells use


class Code(NamedTuple):
    """A row of docs/exit-codes.md; ``number`` is a word where it stands for many codes."""

    number: int | str
    meaning: str
    launcher: str


CODES = (
    Code(FINISHED, "finished", "stop"),
    Code(BAD_INPUT, "bad configuration or input; one line on stderr names the setting; it would fail again", "stop"),
    Code(
        PREEMPTED,
        "stop signal (SIGTERM, SIGUSR1, Ctrl-C to a launcher); state saved if there was any; the same command resumes",
        "requeue",
    ),
    Code(
        CRASH_LOOP,
        "no progress: checkpoints could not be saved, restarts brought no new one, or bad numbers came back",
        "stop; somebody must look",
    ),
    Code(
        INTERRUPTED,
        "Ctrl-C to a command without a launcher; `train` resumes from what is saved",
        "as for a crash",
    ),
    Code(
        "other",
        "crash, a rank without progress, or nobody reads standard output; commands without state die of any signal, "
        "which a shell shows as 128 + its number",
        "restart, then give up",
    ),
)


class UserError(ValueError):
    """Bad configuration or input. The message is one line that names the setting and says what would be right."""

    exit_code = BAD_INPUT


class NoProgressError(RuntimeError):
    """The run cannot keep its progress, and a restart would not help. The message is one line."""

    exit_code = CRASH_LOOP


class HardwareError(RuntimeError):
    """The hardware computes wrongly, more than once. The message is one line."""

    exit_code = CRASHED  # worth a restart, if only on other hardware


def one_line(message: object, most: int | None = None) -> str:
    """A message of another library on one line of at most ``most`` characters. An empty error gives its type's name."""
    return " ".join(str(message).split())[:most] or type(message).__name__


def reason_of(error: BaseException) -> str:
    """Why something failed: the operating system's words, without path and number, else the error on one line."""
    return getattr(error, "strerror", None) or one_line(error, 300)
