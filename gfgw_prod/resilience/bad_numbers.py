"""Detect non-finite and spiking losses and gradient norms, and choose the checkpoint to roll back to.

The response to bad numbers changes the weights, so the state that decides on it is part of every checkpoint.
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

WINDOW = 64  # newest accepted steps, over which the median is taken
ENOUGH = 16  # accepted steps, before a number can be a spike
NAMES = ("gradient norm", "loss")
ACCEPTED, SKIPPED, IN_A_ROW, ROLLED_BACK = range(4)
COUNT_NAMES = ("skipped_steps", "rollbacks")  # in manifests and, after ``run/``, in metrics


class NumberGuard:
    """Compares a step's gradient norm and largest loss with those of earlier steps, and counts skipped steps."""

    def __init__(self, settings: ResilienceSettings):
        self._factor, self._most_skips = settings.spike_factor, settings.skips_before_rollback
        self._window = torch.zeros(WINDOW, len(NAMES), dtype=torch.float64)
        self._counts = torch.zeros(4, dtype=torch.int64)

    def tensors(self) -> dict[str, Tensor]:
        """State for the checkpoint: the numbers ``(64, 2)`` of the newest accepted steps, and four counts."""
        return {"window": self._window, "counts": self._counts}

    def anomaly(self, numbers: tuple[float, ...]) -> str | None:
        """Describe what is wrong with a step's gradient norm and loss, or return ``None``."""
        known = min(int(self._counts[ACCEPTED]), WINDOW)
        medians = self._window[:known].median(dim=0).values.tolist() if known >= ENOUGH else [0.0] * len(NAMES)
        for name, number, median in zip(NAMES, numbers, medians, strict=True):
            if not math.isfinite(number):
                return f"a non-finite {name}"
            if median > 0 and number > self._factor * median:
                return f"a {name} of {number:.3g}, {number / median:.3g} times the median"
        return None

    def accept(self, numbers: tuple[float, ...]) -> None:
        """Record the numbers of an accepted step."""
        self._window[int(self._counts[ACCEPTED]) % WINDOW] = torch.tensor(numbers, dtype=torch.float64)
        self._counts[ACCEPTED] += 1
        self._counts[IN_A_ROW] = 0

    def skip(self) -> None:
        """Record a skipped step."""
        self._counts[SKIPPED] += 1
        self._counts[IN_A_ROW] += 1

    @property
    def skipped(self) -> int:
        """Number of skipped steps in the whole run."""
        return int(self._counts[SKIPPED])

    @property
    def skipped_in_a_row(self) -> int:
        """Number of skipped steps since the last accepted one."""
        return int(self._counts[IN_A_ROW])

    @property
    def rollbacks(self) -> int:
        """Number of rollbacks in the whole run."""
        return int(self._counts[ROLLED_BACK])

    def counts(self) -> dict[str, int]:
        """Numbers of skipped steps and rollbacks, by ``COUNT_NAMES``."""
        return dict(zip(COUNT_NAMES, (self.skipped, self.rollbacks), strict=True))

    @property
    def needs_rollback(self) -> bool:
        """Whether too many steps in a row were skipped."""
        return self.skipped_in_a_row >= self._most_skips

    def record_rollback(self, skipped: int, rollbacks: int) -> None:
        """Restore the counts from before a checkpoint was loaded, and add this rollback."""
        self._counts[SKIPPED], self._counts[ROLLED_BACK], self._counts[IN_A_ROW] = skipped, rollbacks + 1, 0


def checkpoint_before_streak(
    guard: NumberGuard, step: int, storages: Sequence[Storage], world: World, log: Callable[[str], None]
) -> Checkpoint:
    """Choose the newest good checkpoint from before the streak of bad steps that ends with ``step``. Collective.

    Only regular checkpoints qualify, so that interruptions make no difference.

    Raises:
        NoProgressError: if the run was rolled back before, or there is no such checkpoint.
        UserError: if another version wrote a checkpoint.
    """
    problem = describe_streak(guard, step)
    if guard.rollbacks:
        raise NoProgressError(f"{problem}, again after a rollback; check the data and the settings")
    began = step - guard.skipped_in_a_row
    try:
        found = newest_good(storages, world, log, lambda found: found.regular and found.step < began)
    except NoneGoodError:
        found = None
    if found is None:
        raise NoProgressError(f"{problem}, and there is no checkpoint from before them to roll back to")
    return found


def describe_streak(guard: NumberGuard, step: int) -> str:
    """Describe the present streak of bad steps."""
    return f"{guard.skipped_in_a_row} steps in a row, up to step {step}, had a bad loss or gradient norm"
