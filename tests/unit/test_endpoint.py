"""HTTP endpoint of a node: answers to probes and scrapers, malformed requests, its port."""

import json
import re
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from prometheus_client import Gauge

from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.process.watchdog import Watch
from gfgw_prod.telemetry import endpoint
from gfgw_prod.telemetry.endpoint import Endpoint
from gfgw_prod.telemetry.health import Health
from gfgw_prod.telemetry.pace import Pace

from ..process.runs import free_port

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Served:
    """An endpoint on a free port, requested over HTTP."""

    def __init__(self, hang_seconds: float, address: str = "127.0.0.1"):
        self.watch = Watch()
        self.health = Health(hang_seconds, self.watch.silence)
        self.address, self.port = address, free_port()
        self.endpoint = Endpoint(address, self.port, self.health)

    def get(self, path: str) -> tuple[int, str]:
        host = f"[{self.address}]" if ":" in self.address else self.address
        try:
            with DIRECT.open(f"http://{host}:{self.port}{path}", timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refusal:
            return refusal.code, refusal.read().decode()

    def get_json(self, path: str) -> tuple[int, dict]:
        status, body = self.get(path)
        return status, json.loads(body)


class InterruptedEvaluationError(Exception):
    """Ends an evaluation early."""


def test_evaluation_shows_in_health_until_it_ends_or_fails() -> None:
    health = Health(600, lambda: 0.0)
    health.step_done(3, 96)
    for error in (None, InterruptedEvaluationError()):
        with suppress(InterruptedEvaluationError), health.evaluating():
            assert health.is_evaluating
            assert health.ready()["why"] == "evaluating"
            assert health.live()["ok"]
            if error:
                raise error
        assert not health.is_evaluating
        assert health.ready() == {"ok": True, "doing": "training", "step": 3, "images": 96}


def test_pace_excludes_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("gfgw_prod.telemetry.pace.time.monotonic", lambda: now[0])
    pace = Pace(step=10, last_step=100, batch_size=32)
    for error in (None, InterruptedEvaluationError()):
        now[0] += 2
        with suppress(InterruptedEvaluationError), pace.paused():
            now[0] += 1_000
            if error:
                raise error
    values = pace.values(step=12)
    assert values["speed/step_seconds"] == 2
    assert values["speed/images_per_second"] == 16


@pytest.fixture
def served() -> Iterator[Served]:
    each = Served(hang_seconds=600)
    yield each
    each.endpoint.close()


def test_starting_process_is_live_and_not_ready(served: Served) -> None:
    served.health.enter_phase("starting: encoding the bank, 1,024 of 50,000 rows")
    assert served.get_json("/live")[0] == 200
    status, answer = served.get_json("/ready")
    assert (status, answer["why"]) == (503, "starting: encoding the bank, 1,024 of 50,000 rows")


def test_resumed_process_is_not_ready_before_a_step_of_its_own(served: Served) -> None:
    served.health.set_position(1234, 315_904)
    served.health.enter_phase("resuming from step-00001234")
    status, answer = served.get_json("/ready")
    assert (status, answer["why"]) == (503, "resuming from step-00001234")
    assert (answer["step"], answer["images"]) == (1234, 315_904)
    served.health.step_done(1235, 316_160)
    assert served.get_json("/ready") == (200, {"ok": True, "doing": "training", "step": 1235, "images": 316_160})


def test_stopping_process_is_live_and_not_ready(served: Served) -> None:
    served.health.step_done(5, 50)
    served.health.enter_phase("told to stop: saving")
    assert served.get_json("/live")[0] == 200
    status, answer = served.get_json("/ready")
    assert (status, answer["why"], answer["step"]) == (503, "told to stop: saving", 5)


def test_process_without_progress_is_not_live(tmp_path: Path) -> None:
    served = Served(hang_seconds=0.5)
    served.health.enter_phase("starting: reading the data")
    with served.watch.over(600, tmp_path, rank=0):
        time.sleep(1)
        status, answer = served.get_json("/live")
        assert status == 503
        assert re.fullmatch(r"starting: reading the data; no progress for \d+ s", answer["why"])
        with served.watch.paused():
            assert served.get_json("/live")[0] == 200
        served.health.step_done(1, 10)
        time.sleep(1)
        for path in ("/live", "/ready"):
            status, answer = served.get_json(path)
            assert status == 503
            assert re.fullmatch(r"no step for \d+ s", answer["why"])
    assert served.get_json("/live")[0] == 200, "without a watchdog there is no limit"
    served.endpoint.close()


def test_metrics_page_has_the_registry_and_the_process(served: Served) -> None:
    Gauge("one_of_ours", "Help.", registry=served.endpoint.registry).set(7)
    status, page = served.get("/metrics")
    assert status == 200
    assert "\none_of_ours 7.0\n" in page
    assert "\nprocess_resident_memory_bytes " in page


def test_other_paths_are_not_found(served: Served) -> None:
    assert served.get("/") == (404, "there are /live, /ready and /metrics\n")
    assert served.get("/live/?now")[0] == 404
    assert served.get("/live?now")[0] == 200


def test_silent_and_vanishing_clients_delay_nobody(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection(("127.0.0.1", served.port)), socket.create_connection(("127.0.0.1", served.port)):
        assert served.get_json("/live")[0] == 200
    with socket.create_connection(("127.0.0.1", served.port)) as rude:
        rude.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closes with a reset
    assert served.get_json("/live")[0] == 200
    assert capfd.readouterr().err == ""


MALFORMED = {
    "nothing": b"\r\n\r\n",
    "no version": b"GET /live\r\n\r\n",
    "another version": b"GET /live HTTP/9.9\r\n\r\n",
    "no version at all": b"GET /live HTTP/\r\n\r\n",
    "no method that there is": b"BREW /metrics HTTP/1.1\r\n\r\n",
    "a body": b"POST /metrics HTTP/1.1\r\nContent-Length: 999999999999\r\n\r\nx=1",
    "a head": b"HEAD /metrics HTTP/1.1\r\n\r\n",
    "half an address": b"GET http://[ HTTP/1.1\r\n\r\n",
    "a way up": b"GET /../../etc/passwd HTTP/1.1\r\n\r\n",
    "bytes": bytes(range(256)) + b"\r\n\r\n",
    "greeting of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500) + b"\n",
    "a long path": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
    "a long header": b"GET /live HTTP/1.1\r\nA: " + b"a" * 200_000 + b"\r\n\r\n",
    "many headers": b"GET /live HTTP/1.1\r\n" + b"A: b\r\n" * 5_000 + b"\r\n",
    "header that is none": b"GET /live HTTP/1.1\r\n\0\xff\r\n\r\n",
    "an odd format": b"GET /metrics HTTP/1.1\r\nAccept: \xff;q=x,,;;version=1.0.0,*/*\r\n\r\n",
}


@pytest.mark.parametrize("request_", MALFORMED.values(), ids=MALFORMED)
def test_malformed_request_is_refused(served: Served, request_: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as client:
        with suppress(OSError):  # the server may close before everything is sent
            client.sendall(request_)
            client.shutdown(socket.SHUT_WR)
        answer = b""
        with suppress(ConnectionResetError):
            while part := client.recv(1 << 16):
                answer += part
    status = re.match(rb"HTTP/1\.[01] (\d+) ", answer)
    if b"Accept" in request_ or b"\0\xff\r" in request_:  # odd, but valid
        assert status
        assert status[1] == b"200"
    else:
        assert not status or status[1][:1] in b"45", answer[:200]
    assert served.get_json("/live")[0] == 200
    assert capfd.readouterr().err == ""


def test_two_hundred_scrapers_at_once_get_the_same_page(served: Served) -> None:
    gauge = Gauge("one_of_ours", "Help.", registry=served.endpoint.registry)
    made = []
    gauge.set_function(lambda: float(made.append(1) or len(made)))
    with ThreadPoolExecutor(200) as scrapers:
        answers = list(scrapers.map(served.get, ["/metrics"] * 1_000))
    assert {status for status, _ in answers} == {200}
    values = {line for _, page in answers for line in page.splitlines() if line.startswith("one_of_ours ")}
    assert len(values) == len(made) < 100


def test_silent_clients_are_cut_off_and_excess_ones_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "LONGEST_SECONDS", 1.0)
    monkeypatch.setattr(endpoint, "MOST_CONNECTIONS", 20)
    with ExitStack() as open_connections:
        silent = [
            open_connections.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=30))
            for _ in range(40)
        ]
        for client in silent:
            with suppress(OSError):
                client.sendall(b"GET /live HT")
        started = time.monotonic()
        for client in silent:
            with suppress(ConnectionResetError):
                assert b" 200 " not in client.recv(1 << 10)
        assert time.monotonic() - started < 8
    assert served.get_json("/live")[0] == 200


def test_taken_port_is_an_error_that_names_the_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        for address in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(UserError, match=r"telemetry\.prometheus_port") as caught:
                Endpoint(address, holder.getsockname()[1], Health(600, Watch().silence))
            assert "\n" not in str(caught.value)


def test_bad_address_is_an_error_that_names_the_setting() -> None:
    for address in ("no-such-host.invalid", "198.51.100.7", "a" * 300):
        with pytest.raises(UserError, match=r"telemetry\.prometheus_port \d+ on "):
            Endpoint(address, free_port(), Health(600, Watch().silence))


def test_closed_endpoint_frees_its_port_and_ends_its_thread() -> None:
    port, before = free_port(), {*threading.enumerate()}
    for _ in range(2):
        Endpoint("127.0.0.1", port, Health(600, Watch().silence)).close()
    assert {*threading.enumerate()} <= before


@pytest.mark.skipif(not socket.has_ipv6 or sys.platform != "linux", reason="needs IPv6")
def test_endpoint_listens_on_ipv6_too() -> None:
    try:
        served = Served(600, address="::1")
    except UserError:
        pytest.skip("this machine has no IPv6")
    assert served.get_json("/live")[0] == 200
    served.endpoint.close()
