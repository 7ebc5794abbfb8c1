"""Runs of the comparison in processes of their own, on one thread each.

``python -m benchmarks.quality.runs`` answers requests, JSON lines, and keeps what the runs of a data set share.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, Self

import torch

from benchmarks.frozen import write_lite0
from benchmarks.quality import data as data_sets
from benchmarks.quality import objectives
from benchmarks.quality.drifting import Drifting, SinkhornDrifting
from benchmarks.quality.measure import Reference, quality, quality_of_halves
from benchmarks.quality.methods import Method, Ours, Theirs
from gfgw_prod.process.exit_codes import UserError

BUILDERS = {
    "ours": Ours,
    "independent": Ours,
    "ours-lambda-0": Ours,
    "ours-subset": Ours,
    "ours-structure": Ours,
    "ot-regression": partial(Theirs, objectives.MinibatchOtRegression),
    "ot-flow": partial(Theirs, objectives.MinibatchOtFlow),
    "ect": partial(Theirs, objectives.EasyConsistency),
    "meanflow": partial(Theirs, objectives.MeanFlow),
    "drifting": partial(Theirs, Drifting),
    "sinkhorn-drifting": partial(Theirs, SinkhornDrifting),
}
WARM, TURNS, STEPS_A_TURN = 3, 3, 4
ROOT = Path(__file__).resolve().parents[2]
table_of = cache(data_sets.table_of)


class Processes:
    """Processes that answer requests, as many at a time as there are threads that ask."""

    def __init__(self, count: int):
        self.count = count
        self._idle: queue.Queue[subprocess.Popen[str]] = queue.Queue()
        for _ in range(count):
            self._idle.put(
                subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.quality.runs"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=ROOT,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
            )

    def ask(self, kind: str, **arguments: Any) -> dict[str, Any]:
        """Call the function ``kind`` of this module. If it fails, it has said why."""
        process = self._idle.get()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"kind": kind, **arguments}) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            sys.exit(process.wait())
        found: dict[str, Any] = json.loads(answer)
        self._idle.put(process)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while not self._idle.empty():
            self._idle.get().communicate()


def build(name: str, data: str, steps: int, seed: int, changes: Mapping[str, Any]) -> Method:
    if "features.network" in changes:
        changes = {**changes, "features.weights": weights()}
    return BUILDERS[name](table_of(data), steps, seed, changes)


@cache
def weights() -> Path:
    """The file of the network that features are taken from."""
    place = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, place)
    return write_lite0(Path(place))


def costs(requests: Mapping[str, tuple[str, Mapping[str, Any]]], data: str) -> dict[str, tuple[float, float]]:
    """CPU seconds before the first step and of a step, the median, by label.

    Methods take turns, so that other load affects all alike.
    """
    total = WARM + TURNS * STEPS_A_TURN
    methods = {label: build(name, data, total, 0, changes) for label, (name, changes) in requests.items()}
    times: dict[str, list[float]] = {label: [] for label in methods}
    for turn in range(TURNS + 1):
        for label, method in methods.items():
            steps = STEPS_A_TURN if turn else WARM
            started = time.process_time()
            for _ in range(steps):
                method.step()
            if turn:
                times[label].append((time.process_time() - started) / steps)
    return {label: (methods[label].fitting_seconds, statistics.median(found)) for label, found in times.items()}


@cache
def reference(data: str) -> Reference:
    table = table_of(data)
    return Reference(table.rows(torch.arange(len(table))))


def run(name: str, data: str, steps: int, seed: int, changes: Mapping[str, Any], fully: bool) -> dict[str, float]:
    """Train, then measure the samples."""
    method = build(name, data, steps, seed, changes)
    started = time.process_time()
    for _ in range(steps):
        method.step()
    spent = method.fitting_seconds + time.process_time() - started
    with method.ema.applied():
        return {
            "seconds": spent,
            "steps": steps,
            **quality(method.sampler, table_of(data), reference(data), fully=fully),
        }


def halves(data: str) -> Mapping[str, float]:
    """Metrics of one half of the data against the other."""
    return quality_of_halves(table_of(data))


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        kind = request.pop("kind")
        print(json.dumps({"run": run, "costs": costs, "halves": halves}[kind](**request)), flush=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"quality: {error}")
