"""Which checkpoints stay."""

from __future__ import annotations

from collections.abc import Container, Sequence

from gfgw_prod.checkpoint.finding import checkpoints_in
from gfgw_prod.checkpoint.reading import Checkpoint
from gfgw_prod.checkpoint.storage import Storage


def retain(
    storage: Storage, keep: int, every_images: int, verified: set[str], *, spare: Container[str | None] = ()
) -> None:
    """Removes what is ``surplus`` and not spared.

    Damaged ones are not counted, and not removed.

    Args:
        verified: names of those that were read back once, which is enough; their files are still looked at every time.
    """
    found = [checkpoint for checkpoint in checkpoints_in(storage) if _is_good(checkpoint, verified)]
    for checkpoint in surplus(found, keep, every_images):
        if checkpoint.name not in spare:
            storage.remove(checkpoint.name)


def surplus(found: Sequence[Checkpoint], keep: int, every_images: int) -> list[Checkpoint]:
    """Which of the good checkpoints, oldest first, nobody needs any more.

    The newest stays, for it is where a run goes on. Besides, only regular ones stay, so that it makes no difference
    where a run was interrupted: the newest ``keep``, the first at or past each multiple of ``every_images`` (0: none),
    and the one from before the present streak of bad steps, or one that may begin with the next: a run may go back to
    it.
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
