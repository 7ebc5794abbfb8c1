"""Which numbers of a step are out of the ordinary, and how often that has happened: part of the state of a run.

What a run does about bad numbers touches its weights, so all that it depends on stands in the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gfgw_prod.checkpoint.choosing import NoneGoodError, newest_good
from gfgw_prod.checkpoint.reading import Checkpoint
from gfgw_prod.checkpoint.storage import Storage
from gfgw_prod.distributed.world import World
from gfgw_prod.process.exit_codes import NoProgressError

if TYPE_CHECKING:
    from gfgw_prod.settings.running import ResilienceSettings

WINDOW = 64  # steps whose numbers are remembered
ENOUGH = 16  # of them, before a spike is one
NAMES = ("gradient norm", "loss")
ACCEPTED, SKIPPED, IN_A_ROW, ROLLED_BACK = range(4)
COUNT_NAMES = ("skipped_steps", "rollbacks")  # what others call two of these


class NumberGuard:
    """Compares a step's gradient norm and largest loss with those of the steps before."""

    def __init__(self, settings: ResilienceSettings):
        self._factor, self._most_skips = settings.spike_factor, settings.skips_before_rollback
        self._window = torch.zeros(WINDOW, len(NAMES), dtype=torch.float64)
        self._counts = torch.zeros(4, dtype=torch.int64)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""
        return {"window": self._window, "counts": self._counts}

    def anomaly(self, numbers: tuple[float, ...]) -> str | None:
        """What is wrong with a step's gradient norm and loss, in words, or ``None``."""
        known = min(int(self._counts[ACCEPTED]), WINDOW)
        medians = self._window[:known].median(dim=0).values.tolist() if known >= ENOUGH else [0.0] * len(NAMES)
        for name, number, median in zip(NAMES, numbers, medians, strict=True):
            if not math.isfinite(number):
                return f"a {name} that is not finite"
            if median > 0 and number > self._factor * median:
                return f"a {name} of {number:.3g}, {number / median:.3g} times the median"
        return None

    def accept(self, numbers: tuple[float, ...]) -> None:
        """Remembers the numbers of a step that counts."""
        self._window[int(self._counts[ACCEPTED]) % WINDOW] = torch.tensor(numbers, dtype=torch.float64)
        self._counts[ACCEPTED] += 1
        self._counts[IN_A_ROW] = 0

    def skip(self) -> None:
        """Counts a step that does not count."""
        self._counts[SKIPPED] += 1
        self._counts[IN_A_ROW] += 1

    @property
    def skipped(self) -> int:
        """Steps skipped in the life of the run."""
        return int(self._counts[SKIPPED])

    @property
    def skipped_in_a_row(self) -> int:
        """Steps skipped since the last that counted."""
        return int(self._counts[IN_A_ROW])

    @property
    def rollbacks(self) -> int:
        """How often the run went back to a checkpoint."""
        return int(self._counts[ROLLED_BACK])

    def counts(self) -> dict[str, int]:
        """What has happened in the life of the run, by name of a manifest's fact and, after ``run/``, of a metric."""
        return dict(zip(COUNT_NAMES, (self.skipped, self.rollbacks), strict=True))

    @property
    def needs_rollback(self) -> bool:
        """Whether skipping alone does not help."""
        return self.skipped_in_a_row >= self._most_skips

    def record_rollback(self, skipped: int, rollbacks: int) -> None:
        """After the state of a checkpoint was loaded: the counts before it, to which this rollback is added."""
        self._counts[SKIPPED], self._counts[ROLLED_BACK], self._counts[IN_A_ROW] = skipped, rollbacks + 1, 0


def checkpoint_before_streak(
    guard: NumberGuard, step: int, storages: Sequence[Storage], world: World, report: Callable[[str], None]
) -> Checkpoint:
    """The newest good checkpoint from before the bad steps, the last of which is ``step``. Collective.

    Only checkpoints at the regular interval count: where a run was interrupted must not matter.

    Raises:
        NoProgressError: if it has come to this before, or there is no such checkpoint.
        UserError: if checkpoints are there that this run cannot judge.
    """
    problem = describe_streak(guard, step)
    if guard.rollbacks:
        raise NoProgressError(f"{problem}, again after going back to a checkpoint; look at the data and settings")
    began = step - guard.skipped_in_a_row
    try:
        found = newest_good(storages, world, report, lambda found: found.regular and found.step < began)
    except NoneGoodError:
        found = None
    if found is None:
        raise NoProgressError(f"{problem}, and there is no checkpoint from before to go back to")
    return found


def describe_streak(guard: NumberGuard, step: int) -> str:
    """What is wrong, in words."""
    return f"the numbers of {guard.skipped_in_a_row} steps in a row, up to step {step}, were bad"
