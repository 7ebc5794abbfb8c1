"""The agent of one node: runs its workers and acts on their exit codes."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from typing import Any

from torch.distributed import Store
from torch.distributed.elastic.agent.server.api import RunResult, Worker, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsSpecs
from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousConnectionError

from gfgw_prod.launcher import log
from gfgw_prod.launcher.endings import describe_failures, final_code_of, preempted_if_killed_early, stop_signal_in
from gfgw_prod.launcher.forks import ForkServer
from gfgw_prod.launcher.generations import Generation, launcher_of
from gfgw_prod.launcher.job_exit_code import JobExitCode
from gfgw_prod.launcher.joining import Joining
from gfgw_prod.launcher.nodes import Nodes
from gfgw_prod.launcher.regrouping import Regrouping, describe_counts, take_numbers
from gfgw_prod.launcher.torch_changes import stop_signals_deferred
from gfgw_prod.launcher.workers import SAVE_SECONDS, IdleWorkers, end_workers, is_stopped, start_again
from gfgw_prod.process import clock, first_report, save_in_flight
from gfgw_prod.process.exit_codes import BAD_INPUT, CRASH_LOOP, CRASHED, FINISHED, PREEMPTED
from gfgw_prod.process.restart_causes import RESTART_CAUSE, Cause, of_exit_codes
from gfgw_prod.process.signals import PREEMPTION, STOP

# Peers of a failed rank lose their connections, perhaps before the failed rank's node has published its exit code.
JOB_CODE_SECONDS = 5.0


class NotAdmittedError(Exception):
    """A rank of this node, which was to join others, exited with 2: it was refused or could not start."""


class ExitCodeAgent(LocalElasticAgent):
    """torchrun's agent for local workers, which acts on their exit codes, and on those of other nodes."""

    def __init__(
        self,
        spec: WorkerSpec,
        logs_specs: LogsSpecs,
        log_line_prefix_template: str | None,
        job_code: JobExitCode,
        grace_seconds: int,
        restarts_left: int,
        forks: ForkServer | None,
        regrouping: Regrouping,
        joining: Joining,
        nodes: Nodes,
    ):
        super().__init__(spec, logs_specs, log_line_prefix_template=log_line_prefix_template)
        self.job_code = job_code
        self.grace_seconds = grace_seconds
        self.final_code: int | None = None
        self._stopped_while_healthy = False  # a stop signal came while workers ran and none had failed
        self._looked_at = clock.now()
        self._cause: Cause | None = None  # of the next restart
        self._remaining_restarts = restarts_left
        self._forks, self._nodes = forks, nodes
        self._regrouping, self._joining = regrouping, joining
        self._idle = IdleWorkers()

    def run_job(self) -> int:
        """Run the workers to the end of the job; return its exit code.

        Raises:
            SignalException: a stop signal came. The workers had their grace period.
            RendezvousConnectionError: the node that hosts the rendezvous is gone. The workers have been stopped.
            NotAdmittedError: the other nodes go on without this one. The workers have been stopped.
        """
        try:
            result = self.run()
        except UnboundLocalError as error:
            raise stop_signal_in(error) or error from None
        except RendezvousClosedError:
            code = self._job_code_or(CRASHED)
            log("the other nodes have " + ("finished" if code == FINISHED else f"ended the job with exit code {code}"))
            return code
        if result is None:  # more nodes came than the job takes, and this one was spare
            return self._job_code_or(FINISHED)
        if not result.is_failed():
            return self.job_code.set(FINISHED)
        return self.job_code.set(CRASHED if self.final_code is None else self.final_code)

    def _job_code_or(self, default: int) -> int:
        code = None
        with suppress(RendezvousConnectionError):
            code = self.job_code.read()
        return default if code is None else code

    # What follows overrides torchrun's agent, in the order in which torchrun calls it.

    def _assign_worker_ranks(
        self, store: Store, group_rank: int, group_world_size: int, spec: WorkerSpec
    ) -> list[Worker]:
        """Override: ranks that join others get the numbers after theirs."""
        if not self._joining.is_in_place:
            workers: list[Worker] = super()._assign_worker_ranks(store, group_rank, group_world_size, spec)
            return workers
        first, number = self._regrouping.first_rank_if_admitted, spec.local_world_size
        return [Worker(each, first + each, first + each, first + number, first + number) for each in range(number)]

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        """Override: let one of the new ranks report a final error; defer stop signals while ranks are started."""
        first_report.allow_one_report()
        save_in_flight.allow_saves()
        workers = worker_group.workers
        ranks, world_size = [each.global_rank for each in workers], workers[0].world_size
        if self._joining.is_in_place:
            self._regrouping.begin_joining()
        else:
            self._regrouping.begin_round(f"{worker_group.master_addr}:{worker_group.master_port}", ranks, world_size)
        others = self._nodes.begin_round(ranks, world_size, in_place=self._joining.is_in_place)
        if others and self._cause == "error":  # ranks that lost their peers exit with an error too
            self._cause = "membership"
            self._remaining_restarts += 1
        self._pass_on_cause()
        if self._forks is not None:
            self._forks.wait()
        with stop_signals_deferred():
            started: dict[int, Any] = super()._start_workers(worker_group)
            if self._pcontext is not None:
                self._pcontext._close = self._end_workers  # type: ignore[method-assign]
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        """Override: act on exit codes; no stop signal while workers are looked at."""
        with stop_signals_deferred():
            return self._look_at_workers(worker_group)

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        """Override: pass on when and why the ranks are restarted."""
        self._cause = self._cause or "membership"
        super()._restart_workers(worker_group)

    def _pass_on_cause(self) -> None:
        if self._cause is not None:
            os.environ[clock.LAUNCHED_AT] = str(self._looked_at)
            os.environ[RESTART_CAUSE], self._cause = self._cause, None

    def _exit_barrier(self) -> None:
        """Override: do not wait for other nodes when one of them has ended the job."""
        if self.job_code.set(FINISHED) == FINISHED:
            super()._exit_barrier()  # type: ignore[no-untyped-call]

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, **_: Any) -> None:
        """Override: resume workers that were just stopped, and give all of them `grace_seconds` to save.

        Newer torch passes a timeout of its own.
        """
        signalled = stop_signal_in(sys.exception()) is not None
        if signalled:
            codes = self._exit_codes()
            self._stopped_while_healthy = len(codes) < len(self._workers()) and not any(codes)
            # A scheduler may signal more than once, which does not shorten the workers' grace period. Ctrl-C does.
            for stop in {*STOP} - {signal.SIGINT}:
                signal.signal(stop, signal.SIG_IGN)
        # Workers save on these two signals only, whichever the launcher got.
        forwarded = death_sig if death_sig in PREEMPTION else signal.SIGTERM
        if self._pcontext is not None:
            # If workers are stopped because nodes come or go, a stop signal waits until they are: ranks that are
            # signalled twice exit without saving.
            with nullcontext() if signalled else stop_signals_deferred():
                for worker in self._running():
                    if is_stopped(worker.pid):
                        worker.send_signal(signal.SIGCONT)
                self._pcontext.close(forwarded, timeout=self.grace_seconds)
        super()._shutdown(forwarded)

    def _end_workers(self, death_sig: signal.Signals, timeout: float = SAVE_SECONDS) -> None:
        """Replaces torch's."""
        end_workers(self._handlers(), death_sig, timeout)

    def _look_at_workers(self, worker_group: WorkerGroup) -> RunResult:
        self._looked_at = clock.now()  # before torch stops the peers of a failed worker, in its own _monitor_workers
        codes = self._exit_codes()
        if BAD_INPUT in codes and self._regrouping.awaits_admission:
            raise NotAdmittedError
        if (known := final_code_of((), codes)) is not None:
            self.job_code.set(known)  # before other nodes take the broken connections for a crash
        self._adopt_numbers(self._regrouping.update(self._nodes.present()), worker_group)
        forming, interval = self._regrouping.is_forming(), worker_group.spec.monitor_interval
        joining = [self._workers()[local].pid for local in self._regrouping.joining]
        for pid, did in self._idle.kill(self._running(), interval, forming=forming, joining=joining).items():
            log(f"process {pid}, a rank of this node, {did}; it is killed", "warning")
        if self._is_finished():
            return RunResult(WorkerState.SUCCEEDED, dict.fromkeys(w.global_rank for w in worker_group.workers))
        # Only if a rank has ended: torch looks again, and restarts all if it finds one lost that was not seen here.
        is_healthy = not codes or self._replace_lost(worker_group)
        result = RunResult(WorkerState.HEALTHY) if is_healthy else super()._monitor_workers(worker_group)
        if result.state == WorkerState.HEALTHY:
            # Another node may have ended the job. The workers' connections may not show that before their timeout.
            if self._rdzv_handler.is_closed() and self.job_code.read() not in (None, FINISHED):
                raise RendezvousClosedError
        elif result.is_failed():
            failed = {rank: preempted_if_killed_early(failure.exitcode) for rank, failure in result.failures.items()}
            return self._judge_failure(result, failed, worker_group)
        return result

    def _is_finished(self) -> bool:
        """Whether all ranks of this node have finished, except those that the others have not admitted."""
        members = [worker for local, worker in enumerate(self._workers()) if local not in self._regrouping.joining]
        return bool(members) and all(worker.poll() == FINISHED for worker in members)

    def _adopt_numbers(self, generation: Generation | None, worker_group: WorkerGroup) -> None:
        """Adopt the rank numbers of this node's workers in a new generation."""
        if generation is not None and self._regrouping.node in generation.nodes:
            assert isinstance(self._pcontext, SubprocessContext)
            launchers, ranks = {launcher_of(node) for node in generation.nodes}, describe_counts(generation.members)
            self._nodes.adopt(launchers, ranks, is_after_loss=generation.is_after_loss)
            take_numbers(generation, self._regrouping.node, worker_group, self._pcontext.envs)

    def _replace_lost(self, worker_group: WorkerGroup) -> bool:
        """Start a worker in place of each that was lost, if the others can continue; else leave it to torch."""
        lost = {local: code for local, worker in enumerate(self._workers()) if (code := worker.poll()) is not None}
        if (
            {*lost.values()} & {FINISHED, BAD_INPUT, CRASH_LOOP, PREEMPTED, *(-stop for stop in PREEMPTION)}
            or not self._remaining_restarts
            or self.job_code.read() is not None
            or not self._regrouping.can_go_on(lost)
            or (new := self._regrouping.replace(lost)) is None
        ):
            return False
        self._cause = of_exit_codes(lost.values())
        assert isinstance(self._pcontext, SubprocessContext)
        ranks = {worker_group.workers[local].global_rank: code for local, code in lost.items()}
        self._log_crash(ranks, "replacement")
        self._remaining_restarts -= 1
        self._pass_on_cause()
        for local in lost:
            worker_group.workers[local].id = pid = start_again(self._pcontext, local, new)
            self._idle.building.add(pid)
        return True

    def _judge_failure(self, result: RunResult, failed: Mapping[int, int], worker_group: WorkerGroup) -> RunResult:
        """Decide between a restart, the end of the job, and the end that another node has set."""
        self._cause = of_exit_codes(failed.values())
        if {*failed.values()} == {PREEMPTED} and not self._alone():
            # Another node got a stop signal: all ranks have saved, and those of this node continue without that node.
            log("another node got a stop signal: all ranks have saved, and the remaining nodes meet again")
            self._remaining_restarts += 1  # the restart that follows is no crash
            return result
        final = final_code_of(failed.values(), self._exit_codes())
        patience = 0 if final is not None or self._remaining_restarts or self._alone() else JOB_CODE_SECONDS
        elsewhere = self.job_code.wait(patience)
        if elsewhere == FINISHED:
            # All ranks of another node finished, so the run is finished; that node waits for this one.
            log(f"{describe_failures(failed)} after the other nodes had finished")
            return RunResult(WorkerState.SUCCEEDED, dict.fromkeys(w.global_rank for w in worker_group.workers))
        if elsewhere not in (None, final):
            raise RendezvousClosedError
        if final is None and self._regrouping.is_left_out:
            log("the other nodes go on without this one, which joins them again")
            self._cause = "membership"
            self._remaining_restarts += 1
            return result
        if final is None:
            self._log_crash(failed)
        if final is not None or not self._remaining_restarts:
            self.final_code = CRASHED if final is None else final
            self._remaining_restarts = 0
        return result

    def end_after_signal(self, received: signal.Signals) -> int:
        """The exit code after a stop signal. The workers have had their grace period; kill those that are left.

        A signal between a crash that is worth a restart and the next round finds nobody who must save, and the state on
        disk is whole. That is a preemption, whatever the workers of the last round exited with.
        """
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self._pcontext is not None:
            # Repeated Ctrl-C cuts the grace period short. Workers are in sessions of their own: if not killed, they
            # would train, and write checkpoints, beside the next run.
            self._pcontext.close(signal.SIGKILL, timeout=5)
        if self.final_code is not None:  # one worker crashed for good; the others were stopped, and exited with 75
            return self.final_code
        codes = self._exit_codes()
        if (final := final_code_of(codes)) is not None:
            return final
        if codes and not any(codes):
            return FINISHED
        clean = all(preempted_if_killed_early(code) in (FINISHED, PREEMPTED) for code in codes)
        if clean or not self._stopped_while_healthy:
            return PREEMPTED
        log(f"workers did not stop cleanly after {received.name}; the run resumes from its last checkpoint", "error")
        return CRASHED

    def _workers(self) -> list[subprocess.Popen[bytes]]:
        return [handler.proc for handler in self._handlers()]

    def _handlers(self) -> list[SubprocessHandler]:
        return [*self._pcontext.subprocess_handlers.values()] if isinstance(self._pcontext, SubprocessContext) else []

    def _exit_codes(self) -> list[int]:
        """Exit codes of the local workers that have ended (negative: the signal that killed them)."""
        return [code for worker in self._workers() if (code := worker.poll()) is not None]

    def _running(self) -> list[subprocess.Popen[bytes]]:
        return [worker for worker in self._workers() if worker.poll() is None]

    def _alone(self) -> bool:
        return bool(self._worker_group.group_world_size == 1)

    def _log_crash(self, failed: Mapping[int, int], remedy: str = "restart") -> None:
        allowed = self._worker_group.spec.max_restarts
        number = allowed - self._remaining_restarts + 1
        outlook = f"{remedy} {number} of {allowed}" if number <= allowed else "no restarts left"
        log(f"{describe_failures(failed)}; {outlook}", "warning" if number <= allowed else "error")
