"""The cost of ``resilience.in_place`` when no rank is lost: steps that keep what a new rank needs, and plain ones.

Two plain runs take turns with it. What they differ by is what this machine cannot tell from nothing.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.stepping import Stepper, in_turns, on_two_ranks
from gfgw_prod.distributed.world import World
from gfgw_prod.launcher.generations import Offer
from gfgw_prod.resilience.membership import Membership

CASES = {
    "ddp": {},
    "ddp, fresh duals": {"transport": {"dual": "fresh"}},  # steps change no table of potentials
    "fsdp, copies each step": {"distributed": {"strategy": "fsdp"}, "resilience": {"peer_copy_every_steps": 1}},
}


class Keeper(Stepper):
    """A run that keeps what a new rank needs."""

    def __init__(self, settings: Mapping[str, Any], name: str, world: World):
        super().__init__(settings, name, world)
        self.run.kept.make_safe(0.0)

    def take_step(self) -> None:
        """Take one step; copies of the one before may be on their way."""
        super().take_step()
        self.run.kept.copy_if_due(lambda: 0.0)


def threads() -> set[Path]:
    """The threads of this process."""
    return {*Path("/proc/self/task").iterdir()}


def rank_main() -> None:
    world = World.start("cpu", threads=1, timeout_seconds=120)
    before = threads()
    where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), "benchmark", "benchmark"
    Membership(world, Offer(*where, generation=0, node="benchmark", fewest_nodes=1, is_new=False))
    listening = threads() - before
    if world.is_main:
        heads = ("ms plain", "in place", "ratio", "plain/plain", "bytes more")
        print(f"{'digits, two ranks':<24}" + "".join(f"{head:>12}" for head in heads))
    for name, settings in CASES.items():
        kinds = Stepper, Keeper, Stepper
        steppers = [kind(settings, f"{name} {number}", world) for number, kind in enumerate(kinds)]
        plain, kept, again = in_turns(steppers, world)
        if world.is_main:
            ms = [1e3 * statistics.median(took for took, _ in each) for each in (plain, kept)]
            ratio = statistics.median(
                2 * b / (a + c) for (a, _), (b, _), (c, _) in zip(plain, kept, again, strict=True)
            )
            noise = statistics.median(c / a for (a, _), (c, _) in zip(plain, again, strict=True))
            more = statistics.median(b - a for (_, a), (_, b) in zip(plain, kept, strict=True))
            print(f"{name:<24}{ms[0]:>12.1f}{ms[1]:>12.1f}{ratio:>12.3f}{noise:>12.3f}{more:>12,.0f}", flush=True)
    if world.is_main:
        ran = sum(int((thread / "schedstat").read_text().split()[0]) for thread in listening)
        print(f"the thread that listens for generations ran for {ran / 1e6:.1f} ms")
    world.stop()


def main() -> None:
    on_two_ranks("benchmarks.in_place")


if __name__ == "__main__":
    rank_main()
