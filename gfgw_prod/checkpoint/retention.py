"""Remove old checkpoints."""

from __future__ import annotations

from collections.abc import Container, Sequence

from gfgw_prod.checkpoint.finding import checkpoints_in
from gfgw_prod.checkpoint.reading import Checkpoint
from gfgw_prod.checkpoint.storage import Storage


def retain(
    storage: Storage, keep: int, every_images: int, verified: set[str], *, spare: Container[str | None] = ()
) -> None:
    """Remove the ``surplus`` checkpoints of a storage. Damaged ones are neither counted nor removed.

    Args:
        verified: names of checkpoints whose hashes were checked before; only their sizes are checked again. Grows.
        spare: names of checkpoints to keep in any case.
    """
    found = [checkpoint for checkpoint in checkpoints_in(storage) if _is_good(checkpoint, verified)]
    for checkpoint in surplus(found, keep, every_images):
        if checkpoint.name not in spare:
            storage.remove(checkpoint.name)


def surplus(found: Sequence[Checkpoint], keep: int, every_images: int) -> list[Checkpoint]:
    """Choose the checkpoints to remove from the good ones, which are given oldest first.

    The newest stays: the run resumes from it. Besides it only regular ones stay, so that interruptions make no
    difference: the newest ``keep``, the first at or after each multiple of ``every_images`` (0: none), and the newest
    before the present streak of bad steps, or before a streak that starts with the next step: the run may roll back
    to it.
    """
    regular = [checkpoint for checkpoint in found if checkpoint.regular]
    multiples = {each.images // every_images: each for each in reversed(regular)} if every_images else {}
    multiples.pop(0, None)
    before_streak = [each for each in regular if each.step < found[-1].streak_from]
    needed = [*found[-1:], *regular[-keep:], *multiples.values(), *before_streak[-1:]]
    return [checkpoint for checkpoint in found if checkpoint not in needed]


def _is_good(checkpoint: Checkpoint, verified: set[str]) -> bool:
    if checkpoint.name in verified:
        return checkpoint.size_problem() is None
    if checkpoint.problem() is not None:
        return False
    verified.add(checkpoint.name)
    return True
