"""SLURM on this machine: a controller and nodes in network namespaces, each with a host name and address of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

from . import debian, runs
from .two_hosts import do

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "iproute2")
CONTROLLER = "ctl"
ANSWER_SECONDS = 60.0
CONFIGURATION = """
ClusterName=gfgw
SlurmctldHost={controller}
SlurmUser=root
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
PropagateResourceLimits=NONE
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/ctl.pid
SlurmdPidFile={directory}/%n.pid
SlurmctldLogFile={directory}/ctl.log
SlurmdLogFile={directory}/%n.log
SlurmctldPort=6817
SlurmdPort=6818
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=30
SlurmdTimeout={patience_seconds}
MessageTimeout=5
ReturnToService=2
OverTimeLimit=1
SlurmdParameters=config_overrides
NodeName={nodes} CPUs=1
PartitionName=low Nodes={nodes} Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes={nodes} PriorityTier=10
"""


def require() -> None:
    """Skip the test where SLURM cannot run."""
    debian.require("SLURM", ("slurmctld", "slurmd", "sbatch", "ip", "nsenter"), PACKAGES, needs_root=True)


class Cluster:
    """Nodes n1, n2, ..., by context; what runs on them ends with it.

    Args:
        directory: to be made, for what SLURM writes.
        patience_seconds: after which a node that does not answer is taken for dead.
    """

    def __init__(self, directory: Path, nodes: int, patience_seconds: int = 300):
        self.directory, self.patience_seconds = directory, patience_seconds
        self.nodes = [f"n{number + 1}" for number in range(nodes)]
        self.tag = uuid.uuid4().hex[:6]
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    @cached_property
    def hosts(self) -> dict[str, str]:
        """Addresses by host name."""
        return {name: f"198.18.0.{number + 1}" for number, name in enumerate([CONTROLLER, *self.nodes])}

    def namespace(self, host: str) -> str:
        return f"gfgw{self.tag}{host}"

    def __enter__(self) -> Cluster:
        self.directory.mkdir()
        for made in ("state", *(f"spool-{node}" for node in self.nodes)):
            (self.directory / made).mkdir()
        (self.directory / "slurm.conf").write_text(
            CONFIGURATION.format(
                controller=CONTROLLER,
                directory=self.directory,
                nodes=",".join(self.nodes),
                patience_seconds=self.patience_seconds,
            )
        )
        lines = [f"{address} {host}" for host, address in self.hosts.items()]
        (self.directory / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        try:
            for host in self.hosts:
                self._connect(host)
            self._boot(CONTROLLER, "slurmctld")
            for node in self.nodes:
                self.boot(node)
            self.wait_for(lambda: self.ask("sinfo", "--noheader", "--partition=low", "--format=%T") == "idle")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            self.lose(host)
            subprocess.run(["ip", "netns", "delete", self.namespace(host)], check=False, capture_output=True)

    def _connect(self, host: str) -> None:
        name, switch = self.namespace(host), self.namespace(CONTROLLER)
        do("ip", "netns", "add", name)
        do("ip", "-n", name, "link", "set", "lo", "up")
        if host == CONTROLLER:
            card = "switch"
            do("ip", "-n", name, "link", "add", card, "type", "bridge")
        else:
            card = "eth0"
            do("ip", "-n", name, "link", "add", card, "type", "veth", "peer", "name", host, "netns", switch)
            do("ip", "-n", switch, "link", "set", host, "master", "switch", "up")
        do("ip", "-n", name, "address", "add", f"{self.hosts[host]}/24", "dev", card)
        do("ip", "-n", name, "link", "set", card, "up")

    def on(self, host: str, *command: str) -> list[str]:
        """A command as it is started on a host."""
        # `ip netns exec` would hide /sys/fs/cgroup, without which slurmd does not start.
        enter = ["nsenter", f"--net=/run/netns/{self.namespace(host)}", "unshare", "--uts", "--mount", "sh", "-ec"]
        become = f'hostname {host}; mount --bind {self.directory}/hosts /etc/hosts; exec "$@"'
        return [*enter, become, "sh", *command]

    @cached_property
    def environment(self) -> dict[str, str]:
        return runs.environment({"SLURM_CONF": str(self.directory / "slurm.conf")})

    def _boot(self, host: str, *daemon: str) -> None:
        with (self.directory / f"{host}.out").open("ab") as out:
            self.daemons[host] = subprocess.Popen(
                self.on(host, *daemon, "-D"), env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    def boot(self, node: str) -> None:
        """Starts the daemon of a node."""
        self._boot(node, "slurmd", "-N", node)

    def lose(self, host: str) -> None:
        """Cuts a host off and ends all that runs on it, as a loss of power does."""
        if host != CONTROLLER:
            cut = ["ip", "-n", self.namespace(CONTROLLER), "link", "set", host, "down"]
            subprocess.run(cut, check=False, capture_output=True)
        while found := self.processes(host):
            for pid in found:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)
        if host in self.daemons:
            self.daemons.pop(host).wait()

    def processes(self, host: str) -> list[int]:
        """Process ids of all that runs on a host."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.namespace(host)], check=False, capture_output=True, text=True
        )
        return [int(pid) for pid in listed.stdout.split()]

    def ask(self, *command: str, extra: Mapping[str, str] | None = None) -> str:
        """What a client of SLURM prints on the controller. One that can be said twice is, if nobody answers in time."""
        again = command[0] in ("squeue", "sinfo", "scancel", "scontrol")
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            asked = subprocess.run(
                self.on(CONTROLLER, *command),
                env={**self.environment, **(extra or {})},
                cwd=runs.ROOT,
                check=False,
                capture_output=True,
                text=True,
            )
            if asked.returncode == 0 or not again or time.monotonic() > deadline:
                return asked.stdout.strip()
            time.sleep(1)

    def wait_for(self, condition: Callable[[], object], limit_seconds: float = 250, pause_seconds: float = 1.0) -> None:
        """Waits until the condition holds. To ask SLURM takes four processes, which leave others less to run on."""
        deadline = time.monotonic() + limit_seconds
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(log.read_text()[-3000:] for log in self.directory.glob("**/*.log"))
                raise AssertionError(f"nothing after {limit_seconds} s: {self.ask('squeue')}\n{logs}")
            time.sleep(pause_seconds)
