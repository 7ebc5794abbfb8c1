"""A real Prometheus and Alertmanager with the shipped configuration, on the loopback."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from . import debian, runs

DOCKER = runs.ROOT / "docker"
RULES = DOCKER / "prometheus" / "rules.yml"
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
EVERY = "1s"  # interval of scrapes and of rule evaluations, to be quick
SHORTER = {"2m": "30s", "20s": "5s"}  # times of the rules that a test waits for; promtool tests the real ones


def require() -> None:
    """Skip the test where Prometheus cannot run."""
    commands = ("prometheus", "promtool", "prometheus-alertmanager", "amtool")
    debian.require("Prometheus", commands, ("prometheus", "prometheus-alertmanager"))


class Monitoring:
    """Prometheus and Alertmanager, as a context manager.

    Args:
        targets: ports of trainers.
    """

    def __init__(self, directory: Path, targets: Sequence[int]):
        self.directory, self.targets = directory, targets
        self.ports = {"prometheus": runs.free_port(), "alertmanager": runs.free_port()}
        self.servers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Monitoring:
        config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": EVERY, "evaluation_interval": EVERY}
        (self.directory / "rules.yml").write_text(
            re.sub(r"\b(2m|20s)\b", lambda found: SHORTER[found[0]], RULES.read_text())
        )
        places = {"trainer:9100": self.targets, "alertmanager:9093": [self.ports["alertmanager"]]}
        for found in (config["alerting"]["alertmanagers"][0], config["scrape_configs"][0]):
            for each in found["static_configs"]:
                each["targets"] = [f"127.0.0.1:{port}" for place in each["targets"] for port in places[place]]
        del config["scrape_configs"][1:]
        place = self.directory / "prometheus.yml"
        place.write_text(yaml.safe_dump(config))
        self._start(
            "prometheus-alertmanager",
            f"--config.file={DOCKER / 'alertmanager' / 'alertmanager.yml'}",
            f"--storage.path={self.directory / 'alertmanager'}",
            f"--web.listen-address=127.0.0.1:{self.ports['alertmanager']}",
            "--cluster.listen-address=",
        )
        self._start(
            "prometheus",
            f"--config.file={place}",
            f"--storage.tsdb.path={self.directory / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{self.ports['prometheus']}",
        )
        try:
            self.wait_for(lambda: all(self._is_ready(name) for name in self.ports), 120)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.terminate()
        for server in self.servers:
            server.wait(60)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Current value of an expression: label sets and values."""
        answer = self._get("prometheus", "/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
        assert answer["status"] == "success", answer
        return list(answer["data"]["result"])

    def series(self) -> list[dict[str, str]]:
        """Label sets of everything scraped from a trainer so far."""
        return list(self._get("prometheus", "/api/v1/series?match[]=" + urllib.parse.quote('{job="gfgw"}'))["data"])

    def alerts(self) -> dict[str, dict[str, Any]]:
        """Active alerts by name."""
        found = self._get("alertmanager", "/api/v2/alerts?active=true&inhibited=false&silenced=false")
        return {each["labels"]["alertname"]: each for each in found}

    def wait_for(self, condition: Callable[[], object], limit_seconds: float) -> float:
        """Wait until the condition holds; return how long that took."""
        started = time.monotonic()
        while not condition():
            waited = time.monotonic() - started
            if waited > limit_seconds:
                logs = "\n".join(log.read_text()[-2000:] for log in self.directory.glob("*.log"))
                raise AssertionError(f"nothing after {waited:.0f} s\n{logs}")
            time.sleep(0.25)
        return time.monotonic() - started

    def _start(self, *command: str) -> None:
        with (self.directory / f"{command[0]}.log").open("wb") as log:
            self.servers.append(
                subprocess.Popen(
                    command, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
                )
            )

    def _is_ready(self, name: str) -> bool:
        try:
            with DIRECT.open(f"http://127.0.0.1:{self.ports[name]}/-/ready", timeout=5):
                return True
        except OSError:
            return False

    def _get(self, name: str, path: str) -> Any:
        try:
            with DIRECT.open(f"http://127.0.0.1:{self.ports[name]}{path}", timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as refusal:
            raise AssertionError(f"{path}: {refusal.read().decode()}") from None
