"""Answers to probes: during the start, in training, while the process is stopped (SIGSTOP), and at the end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gfgw_prod.process.exit_codes import PREEMPTED

from . import copies, runs

REFUSED, SILENT = -1, -2
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class Probe:
    """Requests pages as a kubelet does, and remembers the answers."""

    port: int
    host: str = "127.0.0.1"
    answers: list[tuple[str, int, dict[str, Any]]] = field(default_factory=list)

    def ask(self, path: str, timeout: float = 30) -> int:
        """The status of a page; ``REFUSED`` if nobody listens, ``SILENT`` if nobody answers."""
        status, answer = REFUSED, {}
        try:
            with DIRECT.open(f"http://{self.host}:{self.port}{path}", timeout=timeout) as page:
                status, answer = page.status, json.load(page)
        except urllib.error.HTTPError as refusal:
            status, answer = refusal.code, json.load(refusal)
        except TimeoutError:
            status = SILENT
        except OSError:  # refused, or closed by the end of the process
            pass
        self.answers.append((path, status, answer))
        return status

    def statuses(self, path: str) -> list[int]:
        """Statuses of a page, in order, without repetitions."""
        found: list[int] = []
        for asked, status, _ in self.answers:
            if asked == path and found[-1:] != [status]:
                found.append(status)
        return found

    def reasons(self, path: str) -> list[str]:
        """Reasons of all 503 answers of a page."""
        return [answer["why"] for asked, status, answer in self.answers if asked == path and status == 503]


@dataclass
class Started:
    """A run that has become ready, and the answers until then."""

    process: subprocess.Popen[str]
    probe: Probe
    start_up: Probe


def started(command: list[str], probe: Probe, surroundings: dict[str, str]) -> subprocess.Popen[str]:
    """Start a run and probe it until it is ready."""
    process = runs.start([*command, "--telemetry.prometheus-port", str(probe.port)], surroundings)
    try:
        runs.wait_until(lambda: probe.ask("/live") == 200 and probe.ask("/ready") == 200, process)
    except BaseException:
        process.kill()
        raise
    return process


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """A run far from its last step. Its bank is encoded row by row, which takes seconds."""
    port, place = runs.free_port(), tmp_path_factory.mktemp("health")
    start_up = Probe(port)
    slow = copies.while_encoding(place, "__import__('time').sleep(0.002)")
    process = started(runs.training(place / "run", "--features.block-rows", "1", steps=100_000), start_up, slow)
    yield Started(process, Probe(port), start_up)
    process.kill()
    process.communicate()


def test_starting_run_is_live_and_says_what_it_does(run: Started) -> None:
    assert run.start_up.statuses("/live") == [REFUSED, 200]
    assert run.start_up.statuses("/ready") == [503, 200]
    reasons = run.start_up.reasons("/ready")
    assert all(reason.startswith("starting: ") for reason in reasons)
    assert any(reason.startswith("starting: encoding the bank, ") for reason in reasons), reasons


def test_training_run_is_ready_and_reports_its_step(run: Started) -> None:
    assert (run.probe.ask("/live"), run.probe.ask("/ready")) == (200, 200)
    answer = run.probe.answers[-1][2]
    assert answer["doing"] == "training"
    assert answer["images"] == answer["step"] * runs.BATCH > 0


def all_stopped(pid: int) -> bool:
    """Whether all threads of a process are stopped."""
    try:
        states = [each.read_text().rpartition(")")[2].split()[0] for each in Path(f"/proc/{pid}/task").glob("*/stat")]
    except OSError:  # a thread has just ended
        return False
    return set(states) == {"T"}


def test_stopped_process_answers_again_after_it_continues(run: Started) -> None:
    os.kill(run.process.pid, signal.SIGSTOP)
    try:
        runs.wait_until(lambda: all_stopped(run.process.pid), run.process)  # a thread may still be answering
        assert run.probe.ask("/live", timeout=1) == SILENT
    finally:
        os.kill(run.process.pid, signal.SIGCONT)
    assert run.probe.ask("/live") == 200


def test_ranks_of_a_node_share_an_endpoint_that_shows_the_end(tmp_path: Path) -> None:
    probe = Probe(runs.free_port())
    process = started(runs.elastic(tmp_path / "run", steps=100_000), probe, {"NPROC": "2"})
    process.terminate()
    ending, deadline = Probe(probe.port), time.monotonic() + 60
    while ending.ask("/ready") != REFUSED and time.monotonic() < deadline:
        time.sleep(0.005)
    assert runs.outcome_of(process).code == PREEMPTED
    assert ending.statuses("/ready")[-1] == REFUSED
    assert set(ending.reasons("/ready")) <= {"told to stop: saving"}  # a save may end between two requests


def test_port_in_use_is_one_line_for_all_ranks(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = str(holder.getsockname()[1])
        command = runs.elastic(tmp_path / "run", "--telemetry.prometheus-port", port)
        complaint = runs.execute(command, {"NPROC": "2"}).complaint
    assert f"telemetry.prometheus_port {port} on 127.0.0.1 cannot be used" in complaint
