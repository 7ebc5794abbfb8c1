"""The elastic agent of one node: torchrun, except that a worker's exit code means something.

torchrun restarts its workers after every failure, whatever their exit code, and leaves with 1 itself. Whoever starts
the job (a shell, SLURM, Kubernetes) then cannot tell a wrong setting from a preemption or a crash. This agent takes
torchrun's own options, and

* does not restart workers that left with 2 (bad input), 75 (preempted, state saved) or 76 (crash loop), and leaves
  with their code;
* says one line for each crash in place of torchrun's banner: the worker has already printed its own story;
* forwards a signal to the workers, waits `GRACE_SECONDS` (default 60) for them to save, and leaves no orphans;
* waits for a rendezvous that was lost with the node that hosts it, and joins again when that node is back.

Every other failure is a crash: the workers are restarted `--max-restarts` times, then the agent leaves with 1.
"""

import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping

from gfgw_prod.resilience.exit_codes import BAD_INPUT, CRASH_LOOP, FINISHED, PREEMPTED


def leave_when_told() -> None:
    """Make a stop signal end this process: without workers there is nothing to save, and the job may be queued again.

    Importing torch and meeting the other nodes takes seconds to minutes. torch installs handlers of its own when
    workers start.
    """
    for stop in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(stop, lambda *_: os._exit(PREEMPTED))


if __name__ == "__main__":
    leave_when_told()
    # Read once, by the import. A peer that is lost gets a line of ours; torch would add a C++ stack for each attempt.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from torch.distributed import DistNetworkError
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
from torch.distributed.elastic.rendezvous.utils import _matches_machine_hostname, parse_rendezvous_endpoint
from torch.distributed.launcher.api import LaunchConfig
from torch.distributed.run import config_from_args, get_args_parser

CRASHED = 1


def verdict(failed: Iterable[int], closed: Iterable[int] = ()) -> int | None:
    """The exit code that ends the job, or None for a crash that is worth a restart.

    `failed` are the codes of the workers that left first, `closed` those of the workers that were then told to stop.
    A stopped worker leaves with 75 because of the others' crash, so its 75 says nothing; but a 2 or a 76 is a cause
    even if a neighbour noticed the broken connection before the worker itself had gone.
    """
    decisive = {*failed, *({BAD_INPUT, CRASH_LOOP} & {*closed})}
    return next((code for code in (BAD_INPUT, CRASH_LOOP, PREEMPTED) if code in decisive), None)


class ContractAgent(LocalElasticAgent):
    """torchrun's agent for local workers, which knows the exit codes that are final."""

    final_code: int | None = None
    grace_seconds: int = 60

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.is_failed():
            failed = {rank: failure.exitcode for rank, failure in result.failures.items()}
            self.final_code = verdict(failed.values(), self.exit_codes())
            if self.final_code is None:
                self._report_crash(failed)
            else:
                self._remaining_restarts = 0
        return result

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM) -> None:
        if isinstance(sys.exception(), SignalException):
            # A scheduler may say SIGTERM more than once; the workers' grace period is not shortened by it. Ctrl-C is.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if self._pcontext is not None:
            self._pcontext.close(death_sig, timeout=self.grace_seconds)
        super()._shutdown(death_sig)

    def _report_crash(self, failed: Mapping[int, int]) -> None:
        causes = ", ".join(
            f"rank {rank} " + (f"exited with {code}" if code > 0 else f"died of {signal.Signals(-code).name}")
            for rank, code in sorted(failed.items())
        )
        allowed = self._worker_group.spec.max_restarts
        number = allowed - self._remaining_restarts + 1
        say(f"{causes}; " + (f"restart {number} of {allowed}" if number <= allowed else "no restarts left"))

    def exit_codes(self) -> list[int]:
        """Exit codes of the local workers that have ended (negative: the signal that killed them)."""
        if not isinstance(self._pcontext, SubprocessContext):
            return []
        codes = (handler.proc.poll() for handler in self._pcontext.subprocess_handlers.values())
        return [code for code in codes if code is not None]

    def end_after_signal(self, received: signal.Signals) -> int:
        """The exit code of a job that was told to stop; by now its workers had their grace period."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self._pcontext is not None:
            # Ctrl-C again and again cuts the grace period short. Workers live in sessions of their own: without this
            # they would go on training, and writing checkpoints, beside the next run.
            self._pcontext.close(signal.SIGKILL, timeout=5)
        codes = self.exit_codes()
        if (final := verdict(codes)) is not None:
            return final
        if all(code == 0 for code in codes):
            return FINISHED
        if all(code in (0, -received) for code in codes):
            return PREEMPTED  # still importing: too early for the workers to have anything to save
        say(f"workers did not stop cleanly after {received.name}; the run resumes from its last checkpoint")
        return CRASHED


def say(message: str) -> None:
    """Print one line on stderr."""
    print(f"gfgw launcher: {message}", file=sys.stderr, flush=True)


def await_host(endpoint: str, seconds: float) -> bool:
    """Wait until the rendezvous host listens; nodes of one job may start minutes apart. False: nobody does."""
    # torch would wait too, but for a minute at most, deaf to signals, and with a stack trace for every attempt.
    host, port = parse_rendezvous_endpoint(endpoint, default_port=29400)
    if _matches_machine_hostname(host):
        return True
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, port), timeout=5).close()
        except OSError:
            time.sleep(1)
        else:
            return True
    return False


def launch(config: LaunchConfig, entrypoint: str, arguments: list[str], grace_seconds: int) -> int:
    """Run the workers of this node to their end; returns the exit code of the job."""
    join_timeout = float(config.rdzv_configs.get("join_timeout", 600))
    while await_host(config.rdzv_endpoint, join_timeout):
        try:
            return attend(config, entrypoint, arguments, grace_seconds)
        except RendezvousLostError:
            leave_when_told()
            say(
                f"lost the rendezvous at {config.rdzv_endpoint}; waiting up to {join_timeout:.0f} s for it to come back"
            )
    say(f"nobody listens at the rendezvous {config.rdzv_endpoint} after {join_timeout:.0f} s")
    return CRASHED


class RendezvousLostError(Exception):
    """The node that hosts the rendezvous has gone in the middle of a job, or cannot be reached."""


def attend(config: LaunchConfig, entrypoint: str, arguments: list[str], grace_seconds: int) -> int:
    """Take part in the job as long as its rendezvous lives; returns the exit code.

    Raises:
        RendezvousLostError: the workers of this node have been stopped.
    """
    rendezvous = get_rendezvous_handler(
        RendezvousParameters(
            backend=config.rdzv_backend,
            endpoint=config.rdzv_endpoint,
            run_id=config.run_id,
            min_nodes=config.min_nodes,
            max_nodes=config.max_nodes,
            local_addr=config.local_addr,
            **config.rdzv_configs,
        )
    )
    spec = WorkerSpec(
        role=config.role,
        local_world_size=config.nproc_per_node,
        entrypoint=entrypoint,
        args=tuple(arguments),
        rdzv_handler=rendezvous,
        max_restarts=config.max_restarts,
        monitor_interval=config.monitor_interval,
        local_addr=config.local_addr,
        numa_options=config.numa_options,
    )
    assert config.logs_specs is not None
    agent = ContractAgent(spec, config.logs_specs, log_line_prefix_template=config.log_line_prefix_template)
    agent.grace_seconds = grace_seconds
    try:
        result = agent.run()
    except SignalException as stop:
        # The rendezvous stays open: closing it would end the job on the nodes that were not told to stop.
        return agent.end_after_signal(stop.sigval)
    except RendezvousClosedError:
        say("the other nodes have ended the job")
        rendezvous.shutdown()
        return CRASHED
    except (RendezvousConnectionError, DistNetworkError) as lost:
        rendezvous._stop_heartbeats()  # type: ignore[attr-defined]  # shutdown() would end the job for all, if it could
        raise RendezvousLostError from lost
    rendezvous.shutdown()
    if result is None or not result.is_failed():  # None: more nodes came than the job takes, and this one was spare
        return FINISHED
    return CRASHED if agent.final_code is None else agent.final_code


def main() -> int:
    """Entry point: `python -m gfgw_prod.launcher [torchrun options] -m MODULE [arguments]`."""
    if "LOGLEVEL" not in os.environ:
        # One worker's line about a wrong setting must not drown in the agent's account of stopping its neighbours.
        logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
        logging.getLogger("torch.distributed.elastic.agent.server.api").setLevel(logging.ERROR)
        logging.getLogger("torch.distributed.elastic.rendezvous.dynamic_rendezvous").setLevel(logging.ERROR)
    grace = os.environ.get("GRACE_SECONDS", "60")
    if not grace.isdigit() or int(grace) == 0:
        say(f"GRACE_SECONDS must be a positive whole number, not {grace!r}")
        return BAD_INPUT
    # One store for all rendezvous rounds would offer restarted ranks the addresses of their dead predecessors, which
    # they then wait for. Without sharing, every round has a store and a port of its own.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    options = get_args_parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="gfgw-launcher-") as scratch:
        options.log_dir = options.log_dir or scratch
        try:
            config, entrypoint, arguments = config_from_args(options)
            assert isinstance(entrypoint, str)
            return launch(config, entrypoint, arguments, int(grace))
        except RendezvousTimeoutError:
            say(f"too few nodes came to {options.rdzv_endpoint} in time: {options.nnodes} wanted")
            return CRASHED
        except RendezvousError as error:
            reason = str(error.__cause__ or error) or type(error).__name__
            say(f"no rendezvous at {options.rdzv_endpoint}: {reason.splitlines()[0]}")
            return CRASHED


if __name__ == "__main__":
    sys.exit(main())
