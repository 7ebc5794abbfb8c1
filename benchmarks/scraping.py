"""The cost of Prometheus scrapers to a run: CPU time of the endpoint, and the slowdown of steps.

First a process does nothing but answer scrapers of another process, with every metric of the catalogue set. Its CPU
time is given as a share of one core, which is what a rank of a CPU run has. Then a digits run trains on one core, in
turns with scrapers and without. One more client sends malformed requests.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from prometheus_client import CollectorRegistry, generate_latest

from gfgw_prod.data.stream import CellRows
from gfgw_prod.distributed.world import World
from gfgw_prod.process.watchdog import Watch
from gfgw_prod.resilience.starts import StartCounter
from gfgw_prod.settings import reading
from gfgw_prod.telemetry.catalogue import CATALOGUE
from gfgw_prod.telemetry.endpoint import Endpoint
from gfgw_prod.telemetry.exposition import Prometheus
from gfgw_prod.telemetry.health import Health
from gfgw_prod.telemetry.startup import Startup
from gfgw_prod.training.resuming import resume
from gfgw_prod.training.run import Run

DIGITS = Path(__file__).resolve().parent.parent / "configs" / "digits.yaml"
RANKS = 16
SECONDS, TURNS = 10.0, 5
SCRAPERS = """
import socket, sys, threading, time
port, count, every, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
answered, lock, end = 0, threading.Lock(), time.monotonic() + seconds
def scrape(number):
    global answered
    time.sleep(every * number / count)
    while time.monotonic() < end:
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(b"GET /metrics HTTP/1.1\\r\\n\\r\\n")
            size = 0
            while part := client.recv(1 << 16):
                size += len(part)
        with lock:
            answered += size > 1000
        now = time.monotonic()
        time.sleep(max(min(every - (now - began), end - now), 0))
def send_malformed():
    while time.monotonic() < end:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(b"GET http://[ \\0\\xff\\r\\n\\r\\n")
            client.recv(1 << 10)
        time.sleep(1)
threads = [threading.Thread(target=scrape, args=(n,)) for n in range(count)]
threads += [threading.Thread(target=send_malformed)] * int(sys.argv[5])
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(answered)
"""


def scrape(port: int, scrapers: int, every: float, seconds: float, malformed: bool = False) -> subprocess.Popen[str]:
    """Start scrapers in another process, and a client of malformed requests if ``malformed``."""
    command = [sys.executable, "-c", SCRAPERS, *map(str, (port, scrapers, every, seconds, int(malformed)))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def core_share(scrapers: int, every: float) -> tuple[float, float]:
    """CPU time of the answering process over wall time, and answers per second."""
    port = free_port()
    endpoint = Endpoint("127.0.0.1", port, Health(600, Watch().silence))
    fill(endpoint.registry)
    scraping = scrape(port, scrapers, every, SECONDS)
    began, spent = time.monotonic(), time.process_time()
    answered = int(scraping.communicate()[0])
    wall = time.monotonic() - began
    spent = time.process_time() - spent
    endpoint.close()
    return spent / wall, answered / wall


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def fill(registry: CollectorRegistry) -> Prometheus:
    """Set every metric of the catalogue, as a run of sixteen ranks does."""
    sink = Prometheus(registry, time.time(), build={"version": "1"})
    sink.record(1, 10, {each.tag: [1.5] * RANKS if each.by else 1.5 for each in CATALOGUE if each.kind != "info"})
    return sink


def main() -> None:
    registry = CollectorRegistry()
    fill(registry)
    began = time.perf_counter()
    for _ in range(20):
        page = generate_latest(registry)
    print(f"one page: {len(page) / 1000:.1f} kB, {(time.perf_counter() - began) / 20 * 1000:.2f} ms")
    print("| scrapers | interval | answers per second | share of a core |\n|---|---|---|---|")
    for scrapers, every in ((0, 1.0), (1, 10.0), (200, 10.0), (200, 1.0)):
        cost, rate = core_share(scrapers, every) if scrapers else idle()
        print(f"| {scrapers} | {every:.0f} s | {rate:.1f} | {cost:.2%} |")
    in_training()


def in_training() -> None:
    """Time steps of one digits run, in turns with scrapers and without."""
    torch.set_num_threads(1)
    port = free_port()
    with tempfile.TemporaryDirectory() as scratch:
        changes = {
            "run": {"dir": f"{scratch}/run"},
            "train": {"total_kimg": 1e6},
            "telemetry": {"prometheus_port": port, "progress": "off"},
        }
        config = reading.resolve(reading.read_yaml(DIGITS), changes)
        world = World(rank=0, world_size=1, device=torch.device("cpu"))
        starts = StartCounter(config.run.dir, config.resilience.max_no_progress, world)
        run = Run(config, world, starts, Startup())
        resume(run)
        run.reporter.begin(run.step, run.training, run.checked_step)
        stream = run.stream(config.total_steps)
        step_seconds(run, stream, SECONDS)  # warm up
        ratios = []
        for turn in range(TURNS):
            found = {}
            for scraped in (False, True) if turn % 2 else (True, False):
                scraping = scrape(port, 200, 10.0, SECONDS + 2, malformed=True) if scraped else None
                time.sleep(1)  # until they have started
                found[scraped] = step_seconds(run, stream, SECONDS)
                if scraping is not None:
                    assert int(scraping.communicate()[0]) >= 200
            ratios.append(found[True] / found[False])
        run.close()
    print(
        f"a step of a digits run with 200 scrapers every 10 s and a malformed request every second takes "
        f"{statistics.median(ratios):.3f} of the time without ({min(ratios):.3f} to {max(ratios):.3f}, {TURNS} turns)"
    )


def step_seconds(run: Run, stream: Iterator[CellRows], seconds: float) -> float:
    """Mean seconds of a step and its record."""
    began, steps = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds:
        with run.reporter.own_time:
            found = run.checked_step(run.step, stream)
        run.kept.step, steps = run.step + 1, steps + 1
        run.reporter.record(run.step, run.images, found)
    return took / steps


def idle() -> tuple[float, float]:
    """The same for an endpoint without requests."""
    endpoint = Endpoint("127.0.0.1", free_port(), Health(600, Watch().silence))
    began, spent = time.monotonic(), time.process_time()
    time.sleep(SECONDS)
    cost = (time.process_time() - spent) / (time.monotonic() - began)
    endpoint.close()
    return cost, 0.0
