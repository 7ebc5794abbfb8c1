"""The effect of the coupling's settings on sample quality: short digits runs that differ in nothing else.

Every run is ``configs/digits.yaml`` with its schedules shortened to ``KIMG``. The table has the Fréchet distance of raw
pixels: the mean and the range over seeds.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sklearn.datasets import load_digits

from benchmarks.quality.digits_quality import ema_samples, pixel_distance

ROOT = Path(__file__).resolve().parents[2]
KIMG, SEEDS, SUBSET_ROWS = "60", range(3), "512"
FRESH = {"transport.tolerance": "0.01", "transport.outer-iterations": "2", "transport.inner-iterations": "50"}
# Turn off what would hide the effect of the coupling.
PLAIN = {
    "features.pixel-constant": "0",
    "transport.noise-weight": "0",
    "transport.dual-balance": "0.95",
    "transport.dual-epochs": "0.25",
    "loss.energy": "0",
    "generator.correlation": "0",
    "consistency.stages": "0",
    "time.location": "0",
    "time.scale": "1",
    "time.stage2-range": "[0.5, 1.0]",
    "train.one-step-share": "0.9",
    "train.batch-size": "128",
    "train.cell-size": "64",
}
SCHEDULES = ("train.total-kimg", "optimizer.decay-kimg", "transport.epsilon-kimg", "transport.structure-weight-kimg")
CHOICES = [
    *itertools.product(("argmax", "sample"), ("subset", "full"), ("fresh", "persistent")),
    ("independent", "full", "fresh"),
]


def distance(target: str, scope: str, dual: str, seed: int, scratch: Path) -> float:
    """Train one run; return its Fréchet distance."""
    run_dir = scratch / f"{target}-{scope}-{dual}-{seed}"
    options = {
        "config": str(ROOT / "configs/digits.yaml"),
        "run.dir": str(run_dir),
        "seed": str(seed),
        "transport.target": target,
        "transport.scope": scope,
        "transport.subset-rows": SUBSET_ROWS,
        "transport.dual": dual,
        "telemetry.progress": "off",
        "evaluation.every-kimg": "0",
        "telemetry.samples-every-kimg": "1000",
        "checkpoint.every-kimg": "1000",
        **FRESH,
        **PLAIN,
        **dict.fromkeys(SCHEDULES, KIMG),
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    command = [sys.executable, "-m", "gfgw_prod", "train", *flags]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return pixel_distance(ema_samples(run_dir, seed), load_digits().data / 8 - 1)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = {
            (choice, seed): pool.submit(distance, *choice, seed, Path(scratch)) for choice in CHOICES for seed in SEEDS
        }
        print(f"{'target':<13}{'scope':<8}{'dual':<12}{'Fréchet':>8}   range of {len(SEEDS)} seeds, {KIMG} kimg each")
        for choice in CHOICES:
            found = [runs[choice, seed].result() for seed in SEEDS]
            target, scope, dual = choice if choice[0] != "independent" else ("independent", "-", "-")
            mean, low, high = statistics.mean(found), min(found), max(found)
            print(f"{target:<13}{scope:<8}{dual:<12}{mean:>8.2f}   {low:.2f} to {high:.2f}", flush=True)
