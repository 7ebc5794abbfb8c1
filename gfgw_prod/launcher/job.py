"""A node's part in a job: meet the other nodes, run the workers, join again after a lost rendezvous, exit.

Read ``main``, then ``Node.run`` and ``Node._take_part``: one call for each rendezvous, until the job ends.
"""

import argparse
import logging
import os
import socket
import time
from contextlib import suppress
from functools import partial

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.api import (
    RendezvousConnectionError,
    RendezvousError,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, create_handler
from torch.distributed.elastic.rendezvous.utils import _matches_machine_hostname, parse_rendezvous_endpoint
from torch.distributed.launcher.api import LaunchConfig
from torch.distributed.run import config_from_args, get_args_parser

from gfgw_prod.launcher import log
from gfgw_prod.launcher.agent import ExitCodeAgent, NotAdmittedError
from gfgw_prod.launcher.endings import log_end
from gfgw_prod.launcher.forks import ForkServer
from gfgw_prod.launcher.job_exit_code import JobExitCode
from gfgw_prod.launcher.joining import Joining, leave
from gfgw_prod.launcher.nodes import Nodes
from gfgw_prod.launcher.regrouping import Regrouping
from gfgw_prod.launcher.torch_changes import NoLogFiles, fork_ranks, keep_ports
from gfgw_prod.launcher.trained_run import can_admit_ranks, prepare_launcher, settings_of_ranks
from gfgw_prod.process import clock, settings_snapshot
from gfgw_prod.process.exit_codes import BAD_INPUT, CRASHED, PREEMPTED, UserError
from gfgw_prod.process.home import expand_home
from gfgw_prod.process.leaving import AGENT_PID
from gfgw_prod.process.restart_causes import EXPECTED_RANKS, RESTART_CAUSE
from gfgw_prod.process.signals import before_exit, exit_on_stop_signals, ignore_stop_signals
from gfgw_prod.process.standard_streams import log_times
from gfgw_prod.settings.presets import settings_file

LINGER_SECONDS = 10.0  # at most, for the other nodes to read the job's exit code
LONGEST_PAUSE_SECONDS = 30.0  # between attempts to join a lost rendezvous; pauses double


def main(forks: ForkServer | None = None) -> int:
    """Take part in the job that the command line describes, with ranks that are forks. Returns the exit code."""
    _prepare_environment()
    options = get_args_parser().parse_args()
    has_files = options.log_dir is not None
    options.log_dir = options.log_dir or os.devnull
    several = options.nnodes.rpartition(":")[2] != "1"  # else the ranks say all there is to say, and this only faults
    if several:
        before_exit.append(partial(log_end, PREEMPTED))
    try:
        code = _code_of_node(options, forks, has_files=has_files)
    except UserError as error:
        log(str(error), "error")
        return BAD_INPUT
    finally:
        if forks is not None:
            forks.close()
    if several:
        log_end(code)
    return code


def _code_of_node(options: argparse.Namespace, forks: ForkServer | None, *, has_files: bool) -> int:
    grace = os.environ.get("GRACE_SECONDS", "60")
    try:
        if not grace.isdigit() or int(grace) == 0:
            raise UserError(f"GRACE_SECONDS must be a positive whole number, not {grace!r}")
        if options.rdzv_backend != "c10d":
            raise UserError(f"--rdzv-backend must be c10d, not {options.rdzv_backend!r}")
        config, entrypoint, arguments = config_from_args(options)
        assert isinstance(entrypoint, str)
        settings_snapshot.take(arguments, lambda text: settings_file(expand_home(text)))
        if (settings := settings_of_ranks(arguments)) is not None:
            prepare_launcher(settings, config.run_id)
        if not has_files:
            config.logs_specs = NoLogFiles()
        if forks is not None and config.numa_options is None:  # torch binds a process that it starts, not a fork
            fork_ranks(forks)
        joins = settings is not None and can_admit_ranks(settings)
        compiles = settings is not None and settings.compiles_alone
        node = Node(
            config, entrypoint, arguments, int(grace), forks, may_join_ranks=joins, waits_for_replacements=not compiles
        )
        return node.run()
    except SignalException:  # workers had ended, and it was not decided yet what to do next
        return PREEMPTED
    except RendezvousTimeoutError:
        log(f"too few nodes came to {options.rdzv_endpoint} in time: {options.nnodes} wanted", "error")
        return CRASHED
    except RendezvousError as error:
        reason = str(error.__cause__ or error) or type(error).__name__
        log(f"no rendezvous at {options.rdzv_endpoint}: {reason.splitlines()[0]}", "error")
        return CRASHED


def _prepare_environment() -> None:
    """Set what torch and the ranks read."""
    if "LOGLEVEL" not in os.environ:
        # Or the one line about a wrong setting drowns in the agent's account of stopping the other workers.
        logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
        logging.getLogger("torch.distributed.elastic.agent.server.api").setLevel(logging.CRITICAL)
        logging.getLogger("torch.distributed.elastic.rendezvous.dynamic_rendezvous").setLevel(logging.ERROR)
    # A store shared by all rounds would give restarted ranks the addresses of their dead predecessors, for which they
    # would wait. Without sharing, every round has its own store and port.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    keep_ports()
    os.environ[AGENT_PID] = str(os.getpid())
    os.environ[clock.LAUNCHED_AT] = str(clock.process_started() or clock.now())


class Node:
    """This node's part in a job, over any number of rendezvous.

    Args:
        may_join_ranks: whether this node's ranks may join others that run already.
        waits_for_replacements: whether the others wait for a rank that replaces a lost one, where they need not.
    """

    def __init__(
        self,
        config: LaunchConfig,
        entrypoint: str,
        arguments: list[str],
        grace_seconds: int,
        forks: ForkServer | None = None,
        *,
        may_join_ranks: bool = False,
        waits_for_replacements: bool = True,
    ):
        self.may_join_ranks, self.waits_for_replacements = may_join_ranks, waits_for_replacements
        self.config, self.entrypoint, self.arguments = config, entrypoint, arguments
        self.grace_seconds, self.forks = grace_seconds, forks
        self.hosting = is_host(config.rdzv_endpoint)
        self.restarts_left = config.max_restarts
        self.alone_since = time.monotonic()

    def run(self) -> int:
        """Run this node's workers to the end of the job. Returns the job's exit code."""
        log_times()
        endpoint = self.config.rdzv_endpoint
        patience = float(self.config.rdzv_configs.get("join_timeout", 600))
        os.environ.pop(RESTART_CAUSE, None)
        os.environ[EXPECTED_RANKS] = str(self.config.max_nodes * self.config.nproc_per_node)
        if self.config.max_nodes > 1:
            fewest, most = self.config.min_nodes, self.config.max_nodes
            wanted = f"at {endpoint}, where {most if fewest == most else f'{fewest} to {most}'} nodes meet"
            joins = f"joins the rendezvous {wanted}; waiting up to {patience:.0f} s for its host"
            log(f"the rendezvous is on this host, {wanted}" if self.hosting else joins)
        pause = 1.0
        while self.hosting or wait_for_host(endpoint, self.alone_since + patience):
            code = self._take_part()
            if code is not None:
                return code
            os.environ[clock.LAUNCHED_AT] = str(clock.now())
            exit_on_stop_signals()
            log(f"lost the rendezvous at {endpoint}; waiting up to {patience:.0f} s for it to come back", "warning")
            time.sleep(pause)  # no busy loop with a host that comes and goes
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        log(f"nobody listens at the rendezvous {endpoint} after {patience:.0f} s", "error")
        return CRASHED

    def _take_part(self) -> int | None:
        """Run the workers for as long as one rendezvous lives.

        Returns:
            The job's exit code, or None if the rendezvous was lost. The workers, if there were any, have been stopped.
        """
        config = self.config
        try:
            rendezvous, job_code, regrouping = meet(
                config, hosts=self.hosting, waits_for_replacements=self.waits_for_replacements
            )
        except (RendezvousConnectionError, DistError, OSError):
            if self.hosting:  # no other node would open it
                raise
            return None
        spec = WorkerSpec(
            role=config.role,
            local_world_size=config.nproc_per_node,
            entrypoint=self.entrypoint,
            args=tuple(self.arguments),
            rdzv_handler=rendezvous,
            max_restarts=config.max_restarts,
            monitor_interval=config.monitor_interval,
            local_addr=config.local_addr,
            numa_options=config.numa_options,
        )
        assert config.logs_specs is not None
        prefix = config.log_line_prefix_template
        limits = self.grace_seconds, self.restarts_left
        joining = Joining(regrouping.find_running_round, is_possible=self.may_join_ranks)
        nodes = Nodes(rendezvous)
        agent = ExitCodeAgent(
            spec, config.logs_specs, prefix, job_code, *limits, self.forks, regrouping, joining, nodes
        )
        try:
            code = agent.run_job()
            ignore_stop_signals()
        except SignalException as stop:
            # Leave the rendezvous open: closing it would end the job on nodes that got no signal.
            return agent.end_after_signal(stop.sigval)
        except (RendezvousConnectionError, DistError):
            rendezvous._stop_heartbeats()  # shutdown() would also end the job for all nodes, if it could
            self.restarts_left, self.alone_since = agent._remaining_restarts, time.monotonic()
            os.environ[RESTART_CAUSE] = "membership"
            return None
        except NotAdmittedError:
            with suppress(RendezvousError):  # its host has just ended
                leave(rendezvous)
            return BAD_INPUT
        rendezvous.shutdown()
        if self.hosting:
            # For every node that the rendezvous knows, also those that wait to join or are spare.
            job_code.wait_for_readers(len(rendezvous._state_holder.state.last_heartbeats), LINGER_SECONDS)
        return code


def meet(
    config: LaunchConfig, *, hosts: bool, waits_for_replacements: bool
) -> tuple[DynamicRendezvousHandler, JobExitCode, Regrouping]:
    """Open the rendezvous, or connect to the node that hosts it. The rest of what the nodes share is in its store too.

    Raises:
        RendezvousConnectionError: if nobody answers.
    """
    parameters = RendezvousParameters(
        backend=config.rdzv_backend,
        endpoint=config.rdzv_endpoint,
        run_id=config.run_id,
        min_nodes=config.min_nodes,
        max_nodes=config.max_nodes,
        local_addr=config.local_addr,
        **config.rdzv_configs,
    )
    backend, store = create_backend(parameters)
    handler = create_handler(store, backend, parameters)
    node, host = str(handler._this_node), address(config.rdzv_endpoint)[0]
    ranks, fewest = config.nproc_per_node, config.min_nodes
    regrouping = Regrouping(
        store,
        host,
        config.run_id,
        node,
        ranks,
        fewest,
        hosts=hosts,
        waits_for_replacements=waits_for_replacements,
    )
    return handler, JobExitCode(store, config.run_id), regrouping


def address(endpoint: str) -> tuple[str, int]:
    """Host and port of the rendezvous."""
    host, port = parse_rendezvous_endpoint(endpoint, default_port=29400)
    return str(host), int(port)


def is_host(endpoint: str) -> bool:
    """Whether this node hosts the rendezvous, by torch's own rule.

    Raises:
        UserError: if the endpoint is malformed, or this node's own name does not resolve.
    """
    try:
        return bool(_matches_machine_hostname(address(endpoint)[0]))
    except ValueError as error:
        raise UserError(str(error)) from None
    except socket.gaierror as error:
        name = socket.gethostname()
        raise UserError(f"this node's own host name {name} must resolve, as in /etc/hosts ({error.strerror})") from None


def wait_for_host(endpoint: str, deadline: float) -> bool:
    """Wait until the rendezvous host listens: nodes of one job may start minutes apart. False if none does in time."""
    # torch would wait too, but for a minute at most, without reacting to signals, and with a stack trace per attempt.
    while time.monotonic() < deadline:
        try:
            socket.create_connection(address(endpoint), timeout=5).close()
        except OSError:
            time.sleep(1)
        else:
            return True
    return False
