"""Metrics page of a run while it trains."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from . import monitoring, runs


class Endpoint:
    """The metrics page of a run."""

    def __init__(self, port: int):
        self.port = port
        self._url = f"http://127.0.0.1:{port}/metrics"
        self._direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def page(self) -> str:
        """The page as text; empty before the run listens."""
        try:
            with self._direct.open(self._url, timeout=10) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def samples(self) -> dict[str, float]:
        """Values by name of the sample and, for losses, term."""
        families = text_string_to_metric_families(self.page())
        found = [sample for family in families for sample in family.samples]
        return {" ".join((each.name, *each.labels.values())): each.value for each in found}


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """Endpoint of a run that has made a step of each kind and is far from its last."""
    port = runs.free_port()
    options = ("--telemetry.prometheus-port", str(port))
    process = runs.start(runs.training(tmp_path_factory.mktemp("live") / "run", *options, steps=100_000))
    endpoint = Endpoint(port)
    try:
        runs.wait_until(lambda: endpoint.samples().get("gfgw_steps_total", 0) >= 2, process)
        yield endpoint
    finally:
        process.kill()
        process.communicate()


def test_page_has_losses_progress_speed_and_checkpoint_age(endpoint: Endpoint) -> None:
    samples = endpoint.samples()
    assert samples["gfgw_loss total"] > 0
    # From steps at t = 1 and from steps before it.
    assert all(samples[f"gfgw_loss {term}"] > 0 for term in ("flow", "feature", "structure", "consistency"))
    assert samples["gfgw_images_seen_total"] == runs.BATCH * samples["gfgw_steps_total"]
    assert samples["gfgw_step_seconds"] > 0
    assert samples["gfgw_gradient_norm"] > 0
    assert samples["gfgw_world_size"] == 1
    assert samples["gfgw_rank_step_seconds 0"] > 0
    assert samples["gfgw_startup_seconds imports"] > 0
    assert samples["gfgw_startup_seconds first_step"] > 0
    assert samples["gfgw_checkpoint_age_seconds"] >= 0


def test_counters_grow_from_scrape_to_scrape(endpoint: Endpoint) -> None:
    first, deadline = endpoint.samples(), time.monotonic() + 60
    while (later := endpoint.samples())["gfgw_checkpoint_saves_total"] < first["gfgw_checkpoint_saves_total"] + 1:
        assert time.monotonic() < deadline, later
        time.sleep(0.1)
    assert later["gfgw_images_seen_total"] > first["gfgw_images_seen_total"]
    assert later["gfgw_steps_total"] > first["gfgw_steps_total"]


def test_promtool_accepts_the_page(endpoint: Endpoint) -> None:
    monitoring.require()
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=endpoint.page(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_two_hundred_scrapers_and_malformed_requests_do_not_stop_training(endpoint: Endpoint) -> None:
    requests = (b"GET /metrics HTTP/1.1\r\n\r\n", b"GET http://[ HTTP/1.1\r\n\r\n", bytes(range(256)), b"GET /me")

    def ask(number: int) -> bytes:
        with socket.create_connection(("127.0.0.1", endpoint.port), timeout=30) as client:
            client.sendall(requests[number % len(requests)])
            return client.recv(1 << 10) if number % len(requests) == 0 else b""

    first = endpoint.samples()["gfgw_steps_total"]
    with ThreadPoolExecutor(200) as scrapers:
        # In batches: the server notices only later that a client has left without an answer.
        answers = [answer for batch in range(10) for answer in scrapers.map(ask, range(200 * batch, 200 * batch + 200))]
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers[:: len(requests)])
    deadline = time.monotonic() + 60
    while endpoint.samples()["gfgw_steps_total"] < first + 3:
        assert time.monotonic() < deadline
        time.sleep(0.1)
