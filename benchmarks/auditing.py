"""The cost of audits: steps computed twice and compared, against plain steps."""

from __future__ import annotations

import statistics

from benchmarks.stepping import Stepper, in_turns, on_two_ranks
from gfgw_prod.distributed.world import World

EVERY = 100  # steps between audits


def rank_main() -> None:
    world = World.start("cpu", threads=1, timeout_seconds=120)
    if world.is_main:
        print(f"{'digits, two ranks':<20}{'ms plain':>10}{'ms audited':>12}{'ratio':>7}   cost at every {EVERY}th step")
    for strategy in ("ddp", "fsdp"):
        steppers = [
            Stepper(
                {"distributed": {"strategy": strategy}, "resilience": {"audit_every_steps": every}},
                f"{strategy}-{every}",
                world,
            )
            for every in (0, 1)
        ]
        plain, audited = in_turns(steppers, world)
        if world.is_main:
            ms = [1e3 * statistics.median(took for took, _ in each) for each in (plain, audited)]
            ratio = statistics.median(b / a for (a, _), (b, _) in zip(plain, audited, strict=True))
            cost = (ratio - 1) / EVERY
            print(f"{strategy:<20}{ms[0]:>10.1f}{ms[1]:>12.1f}{ratio:>7.2f}   {cost:.2%}", flush=True)
    world.stop()


def main() -> None:
    on_two_ranks("benchmarks.auditing")


if __name__ == "__main__":
    rank_main()
