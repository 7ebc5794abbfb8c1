"""Runs of the comparison in a separate process: ``python -m benchmarks.quality.runs`` reads requests as JSON lines."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from benchmarks.quality import objectives
from benchmarks.quality.data import table_of
from benchmarks.quality.measure import quality, quality_of_halves
from benchmarks.quality.methods import Method, Ours, Theirs
from benchmarks.quality.settings import ALWAYS
from gfgw_prod.process.exit_codes import UserError

BUILDERS = {
    "ours": Ours,
    "independent": Ours,
    "ours-lambda-0": Ours,
    "ot-regression": partial(Theirs, objectives.MinibatchOtRegression),
    "ot-flow": partial(Theirs, objectives.MinibatchOtFlow),
    "ect": partial(Theirs, objectives.EasyConsistency),
    "meanflow": partial(Theirs, objectives.MeanFlow),
    "drifting": partial(Theirs, objectives.Drifting),
    "sinkhorn-drifting": partial(Theirs, objectives.SinkhornDrifting),
}
WARM, TURNS, STEPS_A_TURN = 4, 5, 4


def build(name: str, data: str, steps: int, seed: int, changes: Mapping[str, Any]) -> Method:
    return BUILDERS[name](table_of(data), steps, seed, {**ALWAYS.get(name, {}), **changes})


def step_seconds(requests: Mapping[str, tuple[str, Mapping[str, Any]]], data: str) -> dict[str, float]:
    """Median CPU seconds of a step by label. Methods take turns, so that other load affects all alike."""
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
    return {label: statistics.median(found) for label, found in times.items()}


def run(name: str, data: str, steps: int, seed: int, changes: Mapping[str, Any]) -> dict[str, float]:
    """Train, then measure the samples."""
    method = build(name, data, steps, seed, changes)
    started = time.process_time()
    for _ in range(steps):
        method.step()
    spent = time.process_time() - started
    with method.ema.applied():
        return {"seconds": spent, "steps": steps, **quality(method.sampler, table_of(data))}


def halves(data: str) -> dict[str, float]:
    """Metrics of one half of the data against the other: what a perfect generator could reach."""
    return quality_of_halves(table_of(data))


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        kind = request.pop("kind")
        print(json.dumps({"run": run, "time": step_seconds, "halves": halves}[kind](**request)), flush=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"quality: {error}")
