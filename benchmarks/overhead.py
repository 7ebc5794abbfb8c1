"""Time of a whole training step of the full-size network with DINOv2, against its network passes, on one CPU thread.

CPU time of the process, so that other work on the machine does not count.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.frozen import draw_frozen
from gfgw_prod.data.sources import Table
from gfgw_prod.data.stream import cell_stream
from gfgw_prod.distributed.world import World
from gfgw_prod.resilience.bad_numbers import NumberGuard
from gfgw_prod.settings import reading
from gfgw_prod.settings.config import Config
from gfgw_prod.telemetry.health import Health
from gfgw_prod.telemetry.node import NodeTelemetry
from gfgw_prod.telemetry.startup import Startup
from gfgw_prod.training.building import build
from gfgw_prod.training.checked_step import CheckedStep
from gfgw_prod.training.reporting import Reporter
from gfgw_prod.training.step import TrainingStep

RECOMMENDED = Path(__file__).resolve().parent.parent / "configs" / "cifar10.yaml"
ROWS, BATCH, PERIODS = 50_000, 8, 3
MATCHED_BY_DINOV2: dict[str, dict[str, Any]] = {
    "features": {"extractor": "dinov2", "image_size": 112, "pixel_constant": 0.0},
    "transport": {"dual": "persistent", "iterations": "adaptive", "noise_weight": 0.0},
    "consistency": {"stages": 0, "coupled_by": "samples"},
    "train": {"one_step_share": 0.9},
}
NAIVE = {  # a pass to match and one to regress in every step; feature size and layout of the method's first version
    "generator": {"channels_last": False},
    "features": {"image_size": 224},
    "train": {"one_step_share": 0.0},
}


class FullSize:
    """The recommended network, matched by DINOv2, with random weights and data, in fp32, and with changes."""

    def __init__(self, directory: Path, changes: Mapping[str, Any], table: Table):
        dinov2, trunk = draw_frozen(directory)
        local = {
            "run": {"dir": str(directory / "run"), "device": "cpu"},
            "data": {"path": None},
            "generator": {"pretrained": None},
            "features": {"weights": str(dinov2)},
            "loss": {"lpips_trunk": str(trunk)},
            "train": {"batch_size": BATCH, "cell_size": BATCH, "precision": "fp32"},
            "telemetry": {"progress": "off", "log_every_kimg": BATCH / 1000},
        }
        self.config: Config = reading.resolve(reading.read_yaml(RECOMMENDED), MATCHED_BY_DINOV2, local, changes)
        self.world = World(rank=0, world_size=1, device=torch.device("cpu"))
        self.training: TrainingStep = build(self.config, self.world, table, lambda line: None)
        bank = self.training.matcher.bank.local
        bank.copy_(torch.nn.functional.normalize(torch.randn(bank.shape, generator=torch.Generator().manual_seed(0))))
        node = NodeTelemetry(self.config.telemetry, Health(600, lambda: 0.0), is_first=True)
        self.reporter = Reporter(self.config, self.world, Startup(), node)
        (directory / "run").mkdir()
        self.reporter.open(0, {}, damaged=0)
        options = {"audit_every_steps": 0, "hosts": ["here"], "log": print}
        self.checked = CheckedStep(self.training, NumberGuard(self.config.resilience), self.world, **options)
        self.reporter.begin(0, self.training, self.checked)
        assignment, steps = self.training.parallel.assignment, self.config.total_steps
        self.stream = cell_stream(table, assignment, seed=0, first_step=0, last_step=steps, size=BATCH, rank=0)
        self.made = 0
        shape = BATCH, *table.image_shape
        self.noise, self.labels, self.ones = torch.randn(shape), torch.zeros(BATCH, dtype=torch.long), torch.ones(BATCH)

    def step(self) -> None:
        """Make a step as a run does, with its checks and its record."""
        found = self.checked(self.made, self.stream)
        self.made += 1
        self.reporter.record(self.made, self.made * BATCH, found)

    def passes(self) -> dict[str, Callable[[], None]]:
        """The networks' passes, by name."""
        generator, objective = self.training.parallel.module.train(), self.training.objective
        noise, labels, ones = self.noise, self.labels, self.ones
        assert objective.perceptual is not None
        perceptual = objective.perceptual

        def generate() -> None:
            with torch.no_grad():
                generator(noise, ones, labels)

        def train() -> None:
            generator(noise, ones, labels).square().mean().backward()
            generator.zero_grad(set_to_none=True)

        def extract() -> None:
            with torch.no_grad():
                objective.features(noise)

        def extract_graded() -> None:
            objective.features(noise.clone().requires_grad_())[:, 0].sum().backward()

        def compare() -> None:
            perceptual(noise.clone().requires_grad_(), noise).backward()

        return {
            "generator, no gradient": generate,
            "generator, gradient": train,
            "extractor, no gradient": extract,
            "extractor, gradient": extract_graded,
            "LPIPS, gradient": compare,
        }


def seconds(work: Callable[[], None]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (ROWS, 3, 32, 32), generator=draw, dtype=torch.uint8)
    table = Table(images, torch.arange(ROWS) % 10, peak=255, num_classes=10)
    with tempfile.TemporaryDirectory() as scratch:
        sizes = {}
        for name, changes in {"naive": NAIVE, "two passes": {"train": {"one_step_share": 0.0}}, "ours": {}}.items():
            (Path(scratch) / name).mkdir()
            sizes[name] = FullSize(Path(scratch) / name, changes, table)
        period = round(1 / (1 - sizes["ours"].config.train.one_step_share))  # steps until the one-step share repeats
        for each in sizes.values():
            each.step()  # warm up
        sums: dict[str, list[dict[str, float]]] = {"naive": [], "two passes": []}
        steps: dict[str, list[float]] = {"two passes": [], "ours": []}
        for _ in range(PERIODS):
            for name, found in sums.items():
                found.append({what: seconds(work) for what, work in sizes[name].passes().items()})
            steps["two passes"].append(seconds(sizes["two passes"].step))
            steps["ours"].append(sum(seconds(sizes["ours"].step) for _ in range(period)) / period)
        for each in sizes.values():
            each.reporter.close()
    for what in sums["naive"][0]:
        values = [statistics.median(each[what] for each in sums[name]) for name in sums]
        print(f"{what:<32}{values[0]:>8.2f} s at 224 px, contiguous{values[1]:>8.2f} s at 112 px, channels last")
    naive, bare = ([sum(each.values()) for each in sums[name]] for name in ("naive", "two passes"))
    print(f"{'sum of the passes':<32}{statistics.median(naive):>8.2f} s{statistics.median(bare):>29.2f} s")
    for name, against, what in (("two passes", bare, "its passes"), ("ours", naive, "the naive sum")):
        ratios = [a / b for a, b in zip(steps[name], against, strict=True)]
        label = {"two passes": "whole step, all times drawn", "ours": "whole step as recommended"}[name]
        print(
            f"{label:<32}{statistics.median(steps[name]):>8.2f} s, {statistics.median(ratios):.2f} of {what} "
            f"({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
