"""Which checkpoint a run goes back to when the numbers of its steps stay bad."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gfgw_prod.checkpoint.choosing import NoneGoodError, newest_good
from gfgw_prod.checkpoint.reading import Checkpoint
from gfgw_prod.checkpoint.storage import Storage
from gfgw_prod.distributed.world import World
from gfgw_prod.resilience.exit_codes import NoProgressError
from gfgw_prod.resilience.number_guard import NumberGuard


def checkpoint_before_streak(
    guard: NumberGuard, step: int, storages: Sequence[Storage], world: World, report: Callable[[str], None]
) -> Checkpoint:
    """The newest good checkpoint from before the bad steps, the last of which is ``step``. Collective.

    Only checkpoints at the regular interval count: where a run was interrupted must not matter.

    Raises:
        NoProgressError: if it has come to this before, or there is no such checkpoint.
        UserError: if checkpoints are there that this run cannot judge.
    """
    problem = problem_of(guard, step)
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


def problem_of(guard: NumberGuard, step: int) -> str:
    """What is wrong, in words."""
    return f"the numbers of {guard.skipped_in_a_row} steps in a row, up to step {step}, were bad"
