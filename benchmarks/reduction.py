"""Exact against fast reduction on two ranks: time of a step, and bytes on a loopback device of its own."""

from __future__ import annotations

import shutil
import statistics

from benchmarks.stepping import Stepper, in_turns, on_two_ranks
from gfgw_prod.distributed.world import World

BATCH = {"batch_size": 256, "cell_size": 32}
RUNS: dict[str, dict[str, dict[str, int]]] = {
    "digits: 2 cells of 64": {},
    "8 cells of 32": {"train": BATCH},
    "8 cells of 32, 2.9M parameters": {"train": BATCH, "generator": {"model_channels": 64}},
}


def rank_main() -> None:
    world = World.start("cpu", threads=1, timeout_seconds=120)
    if world.is_main:
        print(f"{'':<36}{'':<16}{'ms exact':>10}{'ms fast':>9}{'ratio':>7}{'kB exact':>10}{'kB fast':>9}{'ratio':>7}")
    for number, (name, chosen) in enumerate(RUNS.items()):
        for strategy in ("ddp", "fsdp"):
            steppers = [
                Stepper(
                    {**chosen, "distributed": {"strategy": strategy, "reduction": reduction}},
                    f"{number}-{strategy}-{reduction}",
                    world,
                )
                for reduction in ("exact", "fast")
            ]
            exact, fast = in_turns(steppers, world)
            if world.is_main:
                ms = [1e3 * statistics.median(took for took, _ in each) for each in (exact, fast)]
                kb = [statistics.median(sent for _, sent in each) / 1e3 for each in (exact, fast)]
                ratio = statistics.median(a / b for (a, _), (b, _) in zip(exact, fast, strict=True))
                print(
                    f"{name:<36}{strategy:<16}{ms[0]:>10.1f}{ms[1]:>9.1f}{ratio:>7.3f}"
                    f"{kb[0]:>10.0f}{kb[1]:>9.0f}{kb[0] / kb[1]:>7.2f}",
                    flush=True,
                )
    world.stop()


def main() -> None:
    own_network = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
    available = shutil.which("unshare") and shutil.which("ip")
    on_two_ranks("benchmarks.reduction", own_network if available else ())


if __name__ == "__main__":
    rank_main()
