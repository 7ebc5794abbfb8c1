"""The real stack of docker/compose.yaml: docker-compose, with podman instead of Docker's daemon."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.parse
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ..process import debian, monitoring, runs
from .engine import BASE, IMAGE, PODMAN, do, podman

# Ports in the containers, by service. Debian has no package of Grafana.
PORTS = {"trainer": 9100, "tensorboard": 6006, "prometheus": 9090, "alertmanager": 9093}
SERVICES = tuple(PORTS)
VARIABLES = {"trainer": "METRICS_PORT", **{name: f"{name.upper()}_PORT" for name in SERVICES[1:]}}
# Debian's servers, in images laid out like the published ones.
SERVERS = {
    "docker.io/prom/prometheus:v3.5.0": ("/usr/bin/prometheus", "/bin/prometheus", "/prometheus"),
    "docker.io/prom/alertmanager:v0.28.1": ("/usr/bin/prometheus-alertmanager", "/bin/alertmanager", "/alertmanager"),
}
TEMPLATES = "/usr/share/prometheus/alertmanager"  # part of the published Alertmanager
# Names of services are resolved by a plugin; limits of files and processes as in other tests.
SETTINGS = """\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "file"
[network]
network_backend = "cni"
"""


def require() -> None:
    """Skip the test where the stack cannot run."""
    commands = ("docker-compose", "iptables", "/usr/lib/cni/dnsname")
    packages = ("docker-compose", "iptables", "golang-github-containernetworking-plugin-dnsname")
    debian.require("docker-compose with podman", commands, packages, needs_root=True)
    monitoring.require()


class Stack:
    """The stack, removed at the end of the context."""

    def __init__(self, directory: Path):
        self.directory, self.name = directory, f"gfgw-{runs.free_port()}"
        self.ports = {service: runs.free_port() for service in SERVICES}
        settings = directory / "containers.conf"
        settings.write_text(SETTINGS)
        socket = directory / "podman.sock"
        self.environment = {
            **os.environ,
            "CONTAINERS_CONF": str(settings),
            "DOCKER_HOST": f"unix://{socket}",
            "COMPOSE_PROJECT_NAME": self.name,
            "GFGW_IMAGE": IMAGE,
            "GRAFANA_ADMIN_PASSWORD": "of no service that is started",
            **{VARIABLES[service]: str(port) for service, port in self.ports.items()},
        }
        self.socket, self._left = socket, ExitStack()

    def __enter__(self) -> Stack:
        with ExitStack() as left:
            self._start_engine(left)
            self._prepare(left)
            left.callback(self.compose, "down", "--volumes", check=False)
            self._left = left.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.close()

    def _start_engine(self, left: ExitStack) -> None:
        command = [*PODMAN, "system", "service", "--time=0", f"unix://{self.socket}"]
        told = self.directory / "service.log"
        with told.open("wb") as log:
            engine = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        left.callback(engine.wait, 120)
        left.callback(engine.terminate)
        deadline = time.monotonic() + 180
        while not self.socket.exists():
            assert time.monotonic() < deadline, told.read_text()
            time.sleep(0.1)

    def _prepare(self, left: ExitStack) -> None:
        probe = ("run", "--rm", "--network", "podman", BASE, "true")
        tried = podman(*probe, check=False, environment=self.environment)
        if tried.returncode:
            pytest.skip(f"containers have no network of their own here: {tried.stderr.strip()[-300:]}")
        for tag, (program, name, state) in SERVERS.items():
            left.callback(podman, "rmi", "--force", tag, check=False)  # their names are those of the published images
            self._make(tag, program, name, state)

    def compose(self, *arguments: str, check: bool = True) -> str:
        """Run docker-compose with the shipped file. Returns its output."""
        command = ("docker-compose", "-f", "docker/compose.yaml", *arguments)
        return do(*command, check=check, environment=self.environment).stdout

    def make(self, target: str, arguments: str = "") -> str:
        """Run a target of the Makefile for this stack. Returns its output."""
        command = ["make", "--no-print-directory", target, "COMPOSE=docker-compose", f"IMAGE={IMAGE}"]
        return do(*command, *([f"ARGS={arguments}"] if arguments else []), environment=self.environment).stdout

    def volume(self, name: str) -> Path:
        """Directory of a volume on this machine."""
        return Path(podman("volume", "inspect", "--format", "{{.Mountpoint}}", f"{self.name}_{name}").stdout.strip())

    def logs(self, service: str) -> str:
        """Output of a service."""
        done = podman("logs", f"{self.name}_{service}_1", check=False)
        return done.stdout + done.stderr

    def get(self, service: str, path: str) -> Any:
        """JSON answer of a service on this machine's loopback; ``None`` while it does not answer."""
        try:
            with monitoring.DIRECT.open(f"http://127.0.0.1:{self.ports[service]}{path}", timeout=10) as answer:
                return json.load(answer)
        except (OSError, ValueError):
            return None

    def alertmanagers(self) -> list[str]:
        """Addresses to which Prometheus sends alerts."""
        answer = self.get("prometheus", "/api/v1/alertmanagers")
        return [each["url"] for each in answer["data"]["activeAlertmanagers"]] if answer else []

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Current value of an expression in Prometheus."""
        answer = self.get("prometheus", "/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
        return list(answer["data"]["result"]) if answer else []

    def wait_for(self, condition: Callable[[], object], limit_seconds: float = 300) -> None:
        """Wait until the condition holds."""
        deadline = time.monotonic() + limit_seconds
        while not condition():
            assert time.monotonic() < deadline, {service: self.logs(service)[-1500:] for service in SERVICES}
            time.sleep(0.5)

    def _make(self, tag: str, program: str, name: str, state: str) -> None:
        place = self.directory / Path(name).name
        place.mkdir()
        do("cp", program, str(place / "program"))
        do("cp", "--recursive", "--dereference", TEMPLATES, str(place / "templates"))
        lines = [f"FROM {BASE}", f"COPY program {name}", f"COPY templates {TEMPLATES}"]
        lines += [f"RUN mkdir {state} && chown 65534:65534 {state}"]
        lines += ["USER 65534", f'ENTRYPOINT ["{name}"]']
        (place / "Dockerfile").write_text("\n".join(lines) + "\n")
        isolated = ["--isolation", "chroot", "--format", "docker"]
        do("buildah", "--storage-driver", "overlay", "build", *isolated, "--tag", tag, str(place))
