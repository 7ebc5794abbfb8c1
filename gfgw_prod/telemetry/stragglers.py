"""Ranks that hold up the others, recognised by the time of a step without collectives.

All ranks take as long for a step as the slowest, because they wait for each other in collectives. A rank's own time is
a step's wall time without them. It grows with whatever slows the rank: a busy neighbour, a hot or throttled processor,
slow memory, a slow disk behind the data.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

SHORTEST_SECONDS, FEWEST_STEPS = 5.0, 10  # of an interval over which ranks are compared: less is noise
REPEAT_SECONDS = 600.0  # until a rank that is still slow is named again


class OwnTime:
    """Time of this rank's steps without waiting for other ranks. Each step runs in ``with own_time:``.

    Args:
        waited: returns the seconds spent in collectives so far.
    """

    def __init__(self, waited: Callable[[], float]):
        self._waited, self._begun, self._waited_before = waited, 0.0, 0.0
        self._seconds, self._steps = 0.0, 0
        self.spent = 0.0  # seconds in steps so far, waiting included

    def __enter__(self) -> None:
        self._begun, self._waited_before = time.perf_counter(), self._waited()

    def __exit__(self, *_: object) -> None:
        spent = time.perf_counter() - self._begun
        self.spent += spent
        self._seconds += spent - (self._waited() - self._waited_before)
        self._steps += 1

    def take(self) -> tuple[float, int]:
        """Mean seconds of a step since the last call, and the number of steps."""
        mean, steps = self._seconds / max(self._steps, 1), self._steps
        self._seconds, self._steps = 0.0, 0
        return mean, steps


def slowest(seconds: Sequence[float]) -> tuple[int, float]:
    """The rank with the longest own time, and that time over the median of all ranks.

    The median of an even number of ranks is the lower of the middle two, so that one of two ranks can stand out.
    """
    rank = max(range(len(seconds)), key=seconds.__getitem__)
    return rank, seconds[rank] / max(statistics.median_low(seconds), 1e-9)


class StragglerWatch:
    """Compares the ranks interval by interval, and names the slow ones.

    A rank that stays slow is named again after ten minutes; one that has recovered, as soon as it is slow again.

    Args:
        ratio: own time over the median at which a rank is slow. It has recovered halfway back to 1.
    """

    def __init__(self, hosts: Sequence[str], ratio: float):
        self._hosts, self._ratio = hosts, ratio
        self._named: dict[int, float] = {}  # time of naming by rank
        self._since: float | None = None
        self._sums, self._steps = [0.0] * len(hosts), 0

    def compare(self, seconds: Sequence[float], steps: int, now: float) -> list[str]:
        """Return a line for each rank to be named. The first call only starts an interval: first steps are slower.

        Args:
            seconds: mean own time by rank of the ``steps`` steps since the last call.
        """
        if self._since is None:
            self._restart(now)
            return []
        self._sums = [total + steps * each for total, each in zip(self._sums, seconds, strict=True)]
        self._steps += steps
        if now - self._since < SHORTEST_SECONDS or self._steps < FEWEST_STEPS:
            return []
        means = [total / self._steps for total in self._sums]
        median = max(statistics.median_low(means), 1e-9)
        lines = []
        for rank, mean in enumerate(means):
            if mean <= (1 + self._ratio) / 2 * median:
                self._named.pop(rank, None)
            if mean > self._ratio * median and now - self._named.get(rank, -REPEAT_SECONDS) >= REPEAT_SECONDS:
                self._named[rank] = now
                lines.append(
                    f"rank {rank} on {self._hosts[rank]} holds up the others: its steps take {mean:.3g} s of its own, "
                    f"{mean / median:.1f} times the median of all ranks, over the last {self._steps:,} steps"
                )
        self._restart(now)
        return lines

    def _restart(self, now: float) -> None:
        self._since, self._sums, self._steps = now, [0.0] * len(self._hosts), 0
