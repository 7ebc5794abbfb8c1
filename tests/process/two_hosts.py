"""Two hosts on this machine: network namespaces joined by a cable, each with a host name and address of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from . import runs
from .forks import RUNS, ForkServer

PORT = 29400
CANNOT = "two hosts need root and iproute2" if os.geteuid() or not shutil.which("ip") else ""


def do(*command: str) -> None:
    """Runs a command, which must succeed."""
    subprocess.run(command, check=True, capture_output=True)


class TwoHosts:
    """Hosts 0 and 1, by context; host 0 has the rendezvous."""

    def __init__(self) -> None:
        self.fork_servers: dict[int, ForkServer] = {}
        self.lock = threading.Lock()
        tag = uuid.uuid4().hex[:6]
        self.names = [f"gfgw{tag}a", f"gfgw{tag}b"]
        self.cards = [f"v{tag}a", f"v{tag}b"]
        self.addresses = ["198.18.0.1", "198.18.0.2"]

    def __enter__(self) -> TwoHosts:
        try:
            for name in self.names:
                do("ip", "netns", "add", name)
                etc = Path("/etc/netns") / name  # `ip netns exec` shows what is in it as /etc
                etc.mkdir(parents=True)
                (etc / "resolv.conf").write_text("nameserver 127.0.0.1\n")  # which refuses at once
                lines = [f"{address} {other}" for address, other in zip(self.addresses, self.names, strict=True)]
                (etc / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
            do("ip", "link", "add", self.cards[0], "type", "veth", "peer", "name", self.cards[1])
            for name, card, address in zip(self.names, self.cards, self.addresses, strict=True):
                do("ip", "link", "set", card, "netns", name)
                do("ip", "-n", name, "address", "add", f"{address}/24", "dev", card)
                do("ip", "-n", name, "link", "set", card, "up")
                do("ip", "-n", name, "link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.fork_servers.values():
            server.close()
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
            shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)

    def start(
        self,
        host: int,
        command: Sequence[str],
        extra: Mapping[str, str] | None = None,
        output: TextIO | None = None,
    ) -> subprocess.Popen[str]:
        """Starts a command on a host, as one of one or two nodes of a job. Its process id is the command's own.

        A launcher is forked from a process of that host that has imported what it needs.
        """
        node = {
            "NNODES": "1:2",
            "NPROC": "1",
            "RDZV_ENDPOINT": f"{self.addresses[0]}:{PORT}",
            "RDZV_LAST_CALL": "5",
            "LOCAL_ADDR": self.addresses[host],
            "GLOO_SOCKET_IFNAME": self.cards[host],
        }
        extra = {**node, **(extra or {})}
        if not runs.is_ours(command) and not runs.is_elastic(command):
            return runs.start([*self.on(host), *command], extra, output=output)
        with self.lock:
            if host not in self.fork_servers:
                quiet = runs.environment({"TORCH_CPP_LOG_LEVEL": "ERROR"})  # as the launcher says to torch
                self.fork_servers[host] = ForkServer(RUNS, quiet, self.on(host))
        return runs.start(command, extra, output=output, server=self.fork_servers[host])

    def on(self, host: int) -> list[str]:
        """The words before a command that runs on a host."""
        named = ["unshare", "--uts", "sh", "-c", f'hostname {self.names[host]}; exec "$@"', "sh"]
        return ["ip", "netns", "exec", self.names[host], *named]

    def cable(self, state: str) -> None:
        """Sets the cable ``up`` or ``down``."""
        do("ip", "-n", self.names[1], "link", "set", self.cards[1], state)
