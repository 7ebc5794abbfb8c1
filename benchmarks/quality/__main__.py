"""``python -m benchmarks quality``: compare the methods in a table, or try settings of each with ``--tune``."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.quality.runs import Processes
from benchmarks.quality.settings import METHODS, OPTIONS, RATES, TRIALS, options_of

TUNING_SEED = 100  # in no table, as is 0, on which settings of ours were chosen
Requests = Mapping[str, tuple[str, Mapping[str, Any]]]  # name of a method and its settings, by label
Found = dict[str, list[dict[str, float]]]  # metrics of each seed, by label


def compare(
    processes: Processes, requests: Requests, data: str, seconds: float, seeds: Sequence[int], *, fully: bool = True
) -> Found:
    """Run each label for the same CPU time with every seed; print each result on stderr at once."""
    alike = {label: _without_rate(*request) for label, request in requests.items()}
    costs = processes.ask("costs", requests={alike[label]: request for label, request in requests.items()}, data=data)

    def run_one(label: str, seed: int) -> dict[str, float]:
        name, changes = requests[label]
        fitting, step = costs[alike[label]]
        steps = max(round((seconds - fitting) / step), 1)
        found: dict[str, float] = processes.ask(
            "run", name=name, data=data, steps=steps, seed=seed, changes=changes, fully=fully
        )
        print(json.dumps({"data": data, "method": label, "seed": seed, **found}), file=sys.stderr, flush=True)
        return found

    with ThreadPoolExecutor(processes.count) as pool:
        # Seed by seed, so that other load on the machine affects all methods alike.
        runs = {(label, seed): pool.submit(run_one, label, seed) for seed in seeds for label in requests}
        return {label: [runs[label, seed].result() for seed in seeds] for label in requests}


def _without_rate(name: str, changes: Mapping[str, Any]) -> str:
    """A name for requests whose steps take the same time."""
    return json.dumps([name, {each: value for each, value in changes.items() if each != "optimizer.lr"}])


def tune(processes: Processes, methods: Sequence[str], data: str, seconds: float) -> None:
    """Try every learning rate, then with the best one the method's further trials; print all, best first."""
    for name in methods:
        settings = options_of(data, name)

        def distances(trials: Mapping[str, Mapping[str, Any]], name: str = name) -> dict[str, float]:
            found = compare(
                processes, {each: (name, trials[each]) for each in trials}, data, seconds, [TUNING_SEED], fully=False
            )
            return {label: run["frechet"] for label, (run,) in found.items()}

        tried = distances({f"{name} {rate}": {**settings, "optimizer.lr": rate} for rate in RATES})
        best = float(min(tried, key=lambda label: tried[label]).split()[-1])
        tried |= distances(
            {
                f"{name} {best} {json.dumps(change)}": {**settings, "optimizer.lr": best, **change}
                for change in TRIALS[name]
            }
        )
        for label in sorted(tried, key=lambda label: tried[label]):
            print(f"{tried[label]:>9.3f}  {label}", flush=True)


def print_table(found: Found, reference: Mapping[str, float]) -> None:
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
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 1 on")
    parser.add_argument("--jobs", type=int, default=2, help="parallel runs, each on one thread")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--in-network", action="store_true", help="features of EfficientNet-Lite0 instead of pixels")
    parser.add_argument("--tune", action="store_true", help="try settings of each method, on a separate seed")
    options = parser.parse_args(arguments)
    with Processes(options.jobs) as processes:
        if options.tune:
            tune(processes, options.methods, options.data, options.seconds)
            return
        requests = {
            name: (name, options_of(options.data, name, in_network=options.in_network)) for name in options.methods
        }
        found = compare(processes, requests, options.data, options.seconds, range(1, options.seeds + 1))
        print_table(found, processes.ask("halves", data=options.data))


if __name__ == "__main__":
    main(sys.argv[1:])
