"""``python -m benchmarks quality``: compare the methods in a table, or try learning rates with ``--tune``."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.quality.settings import METHODS, OPTIONS, RATES, options_of

ROOT = Path(__file__).resolve().parents[2]
TUNING_SEED = 100  # not used in the table


def in_own_process(kind: str, **arguments: Any) -> dict[str, float]:
    """Call a function of ``runs`` in a process of its own, on one thread. If it fails, it has said why."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.quality.runs"],
        input=json.dumps({"kind": kind, **arguments}) + "\n",
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        sys.exit(done.returncode)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def compare(
    requests: Mapping[str, tuple[str, Mapping[str, Any]]], data: str, seconds: float, seeds: Sequence[int], jobs: int
) -> dict[str, list[dict[str, float]]]:
    """Run each label for the same CPU time with every seed; print each result on stderr at once."""
    costs = in_own_process("time", requests=requests, data=data)

    def run_one(label: str, seed: int) -> dict[str, float]:
        name, changes = requests[label]
        steps = max(round(seconds / costs[label]), 1)
        found = in_own_process("run", name=name, data=data, steps=steps, seed=seed, changes=changes)
        print(json.dumps({"method": label, "seed": seed, **found}), file=sys.stderr, flush=True)
        return found

    with ThreadPoolExecutor(jobs) as pool:
        # Seed by seed, so that other load on the machine affects all methods alike.
        runs = {(label, seed): pool.submit(run_one, label, seed) for seed in seeds for label in requests}
        return {label: [runs[label, seed].result() for seed in seeds] for label in requests}


def print_table(found: Mapping[str, list[dict[str, float]]], reference: Mapping[str, float]) -> None:
    print(
        "| method | steps | CPU time, of ours | Fréchet distance | range | in Lite0 | precision | recall | memorised |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    base = statistics.median(run["seconds"] for run in next(iter(found.values())))
    for label, runs in found.items():
        middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        distances = [run["frechet"] for run in runs]
        print(
            f"| {METHODS[label]} | {middle['steps']:.0f} | {middle['seconds'] / base:.2f} | {middle['frechet']:.3f} "
            f"| {min(distances):.3f} to {max(distances):.3f} | {middle['network']:.2f} "
            f"| {middle['precision']:.2f} | {middle['recall']:.2f} | {middle['memorised']:.2f} |"
        )
    print(f"| two halves of the data | | | {reference['frechet']:.3f} | | {reference['network']:.2f} "
          f"| {reference['precision']:.2f} | {reference['recall']:.2f} | {reference['memorised']:.2f} |")  # fmt: skip


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks quality", description=__doc__)
    parser.add_argument(
        "--data",
        default="digits",
        help=f"{', '.join(OPTIONS)}, or DIR@SIDE: pictures of benchmarks.pictures at that size",
    )
    parser.add_argument("--seconds", type=float, default=60, help="approximate CPU time of a run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="parallel runs, each on one thread")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--tune", action="store_true", help="try every learning rate, on a separate seed")
    options = parser.parse_args(arguments)
    if options.tune:
        requests = {
            f"{name} {rate}": (name, {**options_of(options.data).get(name, {}), "optimizer.lr": rate})
            for name in options.methods
            for rate in RATES
        }
        for label, (run,) in compare(requests, options.data, options.seconds, [TUNING_SEED], options.jobs).items():
            print(f"{label:<28}{run['frechet']:>8.3f}")
        return
    requests = {name: (name, options_of(options.data).get(name, {})) for name in options.methods}
    found = compare(requests, options.data, options.seconds, range(options.seeds), options.jobs)
    print_table(found, in_own_process("halves", data=options.data))


if __name__ == "__main__":
    main(sys.argv[1:])
