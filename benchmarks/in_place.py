"""The cost of ``resilience.in_place`` when no rank is lost: steps that keep what a new rank needs, and plain ones."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

from benchmarks.stepping import Stepper, in_turns, on_two_ranks
from gfgw_prod.distributed.world import World
from gfgw_prod.resilience.membership import Membership
from gfgw_prod.training.kept import keep_whole_tables

DUALS = ("persistent", "fresh")  # only the first has a table that steps change


def threads() -> set[Path]:
    """The threads of this process."""
    return {*Path("/proc/self/task").iterdir()}


def rank_main() -> None:
    world = World.start("cpu", threads=1, timeout_seconds=120)
    before = threads()
    Membership(world, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), "benchmark", 0)
    listening = threads() - before
    if world.is_main:
        print(f"{'digits, two ranks':<20}{'ms plain':>10}{'ms in place':>13}{'ratio':>8}{'bytes more':>12}")
    for dual in DUALS:
        steppers = [Stepper({"transport": {"dual": dual}}, f"{dual}-{name}", world) for name in ("plain", "in place")]
        keep_whole_tables(steppers[1].run.training)
        plain, kept = in_turns(steppers, world)
        if world.is_main:
            ms = [1e3 * statistics.median(took for took, _ in each) for each in (plain, kept)]
            ratio = statistics.median(b / a for (a, _), (b, _) in zip(plain, kept, strict=True))
            more = statistics.median(b - a for (_, a), (_, b) in zip(plain, kept, strict=True))
            print(f"{dual:<20}{ms[0]:>10.1f}{ms[1]:>13.1f}{ratio:>8.3f}{more:>12,.0f}", flush=True)
    if world.is_main:
        ran = sum(int((thread / "schedstat").read_text().split()[0]) for thread in listening)
        print(f"the thread that listens for generations ran for {ran / 1e6:.1f} ms")
    world.stop()


def main() -> None:
    on_two_ranks("benchmarks.in_place")


if __name__ == "__main__":
    rank_main()
