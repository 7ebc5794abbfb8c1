"""The ends of ranks and jobs: what exit codes of ranks mean for the job, and the launcher's log lines about them."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping

from torch.distributed.elastic.multiprocessing import SignalException

from gfgw_prod.launcher import log
from gfgw_prod.process.exit_codes import BAD_INPUT, CRASH_LOOP, FINISHED, PREEMPTED
from gfgw_prod.process.signals import PREEMPTION

WHAT_FOLLOWS = {
    FINISHED: "the run is finished",
    BAD_INPUT: "bad configuration or input; the same command would fail again",
    PREEMPTED: "told to stop; the same command goes on",
    CRASH_LOOP: "no progress; somebody must look before it is started again",
}


def log_end(code: int) -> None:
    """Log the exit code of this launcher, and what follows."""
    follows = WHAT_FOLLOWS.get(code, "a crash; the same command resumes from the last checkpoint")
    log(f"exit code {code}: {follows}", "info" if code in (FINISHED, PREEMPTED) else "error")


def final_code_of(failed: Iterable[int], stopped: Iterable[int] = ()) -> int | None:
    """The exit code that ends the job, or None for a crash that is worth a restart.

    Args:
        failed: codes of the workers that exited first.
        stopped: codes of those that were stopped then. 75 is no cause: a stopped worker always exits with it.
            But a 2 or a 76 is a cause, even if a neighbour noticed the broken connection before that worker had ended.
    """
    decisive = {*failed, *({BAD_INPUT, CRASH_LOOP} & {*stopped})}
    return next((code for code in (BAD_INPUT, CRASH_LOOP, PREEMPTED) if code in decisive), None)


def preempted_if_killed_early(code: int) -> int:
    """A worker's exit code; 75 also if a stop signal killed it, which happens only before its first line has run."""
    return PREEMPTED if code in {-stop for stop in PREEMPTION} else code


def stop_signal_in(error: BaseException | None) -> SignalException | None:
    """The stop signal behind an error, if there is one.

    torch's decorator ``prof`` times the agent's methods. If a signal arrives in its first line, it has no start time
    yet, and raises UnboundLocalError over the SignalException.
    """
    cause = error.__context__ if isinstance(error, UnboundLocalError) else error
    return cause if isinstance(cause, SignalException) else None


def describe_failures(failed: Mapping[int, int]) -> str:
    """How ranks ended, as in ``rank 0 exited with 1, rank 3 died of SIGKILL``."""
    return ", ".join(
        f"rank {rank} " + (f"exited with {code}" if code > 0 else f"died of {signal.Signals(-code).name}")
        for rank, code in sorted(failed.items())
    )
