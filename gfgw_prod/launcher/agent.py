"""The agent that runs the workers of one node and knows what their exit codes mean."""

import os
import signal
import sys
from collections.abc import Iterable, Mapping
from contextlib import nullcontext, suppress
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousConnectionError

from gfgw_prod.launcher import say
from gfgw_prod.launcher.ending import Ending
from gfgw_prod.launcher.torch_fixes import LATER_SECONDS, let_go_on, waiting
from gfgw_prod.process import clock, first_word
from gfgw_prod.process.exit_codes import BAD_INPUT, CRASH_LOOP, CRASHED, FINISHED, PREEMPTED
from gfgw_prod.process.restart_causes import RESTART_CAUSE, Cause, of_exit_codes
from gfgw_prod.process.signals import PREEMPTION, STOP

# A rank that fails takes its peers' connections along: their nodes may see a crash before its own node has told why.
CAUSE_SECONDS = 5.0


def verdict(failed: Iterable[int], closed: Iterable[int] = ()) -> int | None:
    """The exit code that ends the job, or None for a crash that is worth a restart.

    `failed` are the codes of the workers that left first, `closed` those of the workers that were then told to stop.
    A stopped worker leaves with 75 because of the others' crash, so its 75 says nothing; but a 2 or a 76 is a cause
    even if a neighbour noticed the broken connection before the worker itself had gone.
    """
    decisive = {*failed, *({BAD_INPUT, CRASH_LOOP} & {*closed})}
    return next((code for code in (BAD_INPUT, CRASH_LOOP, PREEMPTED) if code in decisive), None)


def told_early(code: int) -> int:
    """The exit code of a worker: 75 also if it died of a stop signal, which it did before its first line could run."""
    return PREEMPTED if code in {-stop for stop in PREEMPTION} else code


class ContractAgent(LocalElasticAgent):
    """torchrun's agent for local workers, which knows the exit codes that are final, here and on other nodes."""

    def __init__(
        self,
        spec: WorkerSpec,
        logs_specs: LogsSpecs,
        log_line_prefix_template: str | None,
        ending: Ending,
        grace_seconds: int,
        restarts_left: int,
    ):
        super().__init__(spec, logs_specs, log_line_prefix_template=log_line_prefix_template)
        self.ending = ending
        self.grace_seconds = grace_seconds
        self.final_code: int | None = None
        self._struck_at_work = False  # told to stop while workers were alive and none had failed
        self._looked_at = clock.now()
        self._cause: Cause | None = None  # of the next restart, if it is not that nodes come or go
        self._remaining_restarts = restarts_left

    @property
    def restarts_left(self) -> int:
        """How many more crashes of its workers this node takes."""
        return int(self._remaining_restarts)

    def job(self) -> int:
        """Run the workers to the end of the job; returns its exit code.

        Raises:
            SignalException: told to stop. The workers had their grace period.
            RendezvousConnectionError: the node that hosts the rendezvous has gone. The workers have been stopped.
        """
        try:
            result = self.run()
        except UnboundLocalError as error:
            raise stop_behind(error) or error from None
        except RendezvousClosedError:
            code = self._heard_at_the_end(otherwise=CRASHED)
            say("the other nodes have " + ("finished" if code == FINISHED else f"ended the job with exit code {code}"))
            return code
        if result is None:  # more nodes came than the job takes, and this one was spare
            return self._heard_at_the_end(otherwise=FINISHED)
        if not result.is_failed():
            return self.ending.declare(FINISHED)
        return self.ending.declare(CRASHED if self.final_code is None else self.final_code)

    def _heard_at_the_end(self, otherwise: int) -> int:
        code = None
        with suppress(RendezvousConnectionError):
            code = self.ending.heard()
        return otherwise if code is None else code

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        with waiting():
            return self._looked_after(worker_group)

    def _looked_after(self, worker_group: WorkerGroup) -> RunResult:
        self._looked_at = clock.now()  # failed workers' peers are stopped in here, too
        codes = self.exit_codes()
        if (known := verdict((), codes)) is not None:
            self.ending.declare(known)  # before the other nodes count the crash that they see for one
        if any(codes):
            # The others are told to stop, and have 30 s to do so: a save in flight ends, or is given up, in 20.
            self._let_go_on(after_seconds=LATER_SECONDS)
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state == WorkerState.HEALTHY:
            # The connections of this node's workers may tell nothing of an ended job for as long as their timeout.
            if self._rdzv_handler.is_closed() and self.ending.heard() not in (None, FINISHED):
                raise RendezvousClosedError
        elif result.is_failed():
            failed = {rank: told_early(failure.exitcode) for rank, failure in result.failures.items()}
            self._cause = of_exit_codes(failed.values())
            if {*failed.values()} == {PREEMPTED} and not self._alone():
                # This node was not told to stop, another was: all ranks have saved, and here they go on without it.
                say("ranks have saved their state for a node that was told to stop; meeting again")
                self._remaining_restarts += 1  # what comes next is no crash
                return result
            final = verdict(failed.values(), self.exit_codes())
            patience = 0 if final is not None or self._remaining_restarts or self._alone() else CAUSE_SECONDS
            heard = self.ending.heard_within(patience)
            if heard == FINISHED:
                # All ranks of another node finished, so the run is finished; that node waits for this one.
                say(f"{causes(failed)} after the other nodes had finished")
                return RunResult(WorkerState.SUCCEEDED, dict.fromkeys(w.global_rank for w in worker_group.workers))
            if heard not in (None, final):
                raise RendezvousClosedError
            if final is None:
                self._report_crash(failed)
            if final is not None or not self._remaining_restarts:
                self.final_code = CRASHED if final is None else final
                self._remaining_restarts = 0
        return result

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        os.environ[clock.LAUNCHED_AT] = str(self._looked_at)
        os.environ[RESTART_CAUSE], self._cause = self._cause or "membership", None
        super()._restart_workers(worker_group)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        first_word.offer()
        with waiting():
            started: dict[int, Any] = super()._start_workers(worker_group)
        return started

    def _exit_barrier(self) -> None:
        if self.ending.declare(FINISHED) == FINISHED:
            super()._exit_barrier()  # type: ignore[no-untyped-call]

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM) -> None:
        told = stop_behind(sys.exception()) is not None
        if told:
            codes = self.exit_codes()
            self._struck_at_work = len(codes) < self._started() and not any(codes)
            # A scheduler may say it more than once; the workers' grace period is not shortened by that. Ctrl-C does.
            for stop in {*STOP} - {signal.SIGINT}:
                signal.signal(stop, signal.SIG_IGN)
        # Whatever the launcher was told by, its workers save when they are told to by one of these.
        told_by = death_sig if death_sig in PREEMPTION else signal.SIGTERM
        if self._pcontext is not None:
            # Where workers stop because nodes come or go, a stop signal waits until they have: told twice, ranks leave
            # without saving.
            with nullcontext() if told else waiting():
                self._let_go_on()
                self._pcontext.close(told_by, timeout=self.grace_seconds)
        super()._shutdown(told_by)

    def _let_go_on(self, after_seconds: float = 0.0) -> None:
        if isinstance(self._pcontext, SubprocessContext):
            handlers = self._pcontext.subprocess_handlers.values()
            let_go_on([each.proc.pid for each in handlers if each.proc.poll() is None], after_seconds)

    def _report_crash(self, failed: Mapping[int, int]) -> None:
        allowed = self._worker_group.spec.max_restarts
        number = allowed - self._remaining_restarts + 1
        say(f"{causes(failed)}; " + (f"restart {number} of {allowed}" if number <= allowed else "no restarts left"))

    def _alone(self) -> bool:
        return bool(self._worker_group.group_world_size == 1)

    def _started(self) -> int:
        return len(self._pcontext.subprocess_handlers) if isinstance(self._pcontext, SubprocessContext) else 0

    def exit_codes(self) -> list[int]:
        """Exit codes of the local workers that have ended (negative: the signal that killed them)."""
        if not isinstance(self._pcontext, SubprocessContext):
            return []
        codes = (handler.proc.poll() for handler in self._pcontext.subprocess_handlers.values())
        return [code for code in codes if code is not None]

    def end_after_signal(self, received: signal.Signals) -> int:
        """The exit code of a job that was told to stop; by now its workers had their grace period.

        Between a crash that is worth a restart and the next round there is nobody to save, and the run is as whole as
        it was: that is a preemption, whatever the workers of the round before left with.
        """
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self._pcontext is not None:
            # Ctrl-C again and again cuts the grace period short. Workers live in sessions of their own: without this
            # they would go on training, and writing checkpoints, beside the next run.
            self._pcontext.close(signal.SIGKILL, timeout=5)
        if self.final_code is not None:  # the workers that were stopped with one that crashed say 75
            return self.final_code
        codes = self.exit_codes()
        if (final := verdict(codes)) is not None:
            return final
        if codes and not any(codes):
            return FINISHED
        if not self._struck_at_work or all(told_early(code) in (FINISHED, PREEMPTED) for code in codes):
            return PREEMPTED  # or still importing: too early for the workers to have anything to save
        say(f"workers did not stop cleanly after {received.name}; the run resumes from its last checkpoint")
        return CRASHED


def stop_behind(error: BaseException | None) -> SignalException | None:
    """The stop signal that an error tells of.

    torch times its agent's methods. A signal in the first line of that leaves it without a time of the start, and what
    it raises is an error about that.
    """
    told = error.__context__ if isinstance(error, UnboundLocalError) else error
    return told if isinstance(told, SignalException) else None


def causes(failed: Mapping[int, int]) -> str:
    """How ranks ended, in words."""
    return ", ".join(
        f"rank {rank} " + (f"exited with {code}" if code > 0 else f"died of {signal.Signals(-code).name}")
        for rank, code in sorted(failed.items())
    )
