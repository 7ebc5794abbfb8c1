"""Remove old checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from gfgw_prod.checkpoint.finding import checkpoints_in
from gfgw_prod.checkpoint.reading import Checkpoint
from gfgw_prod.checkpoint.storage import Storage


class Retention:
    """Removes the ``surplus`` checkpoints of a storage. Damaged ones are neither counted nor removed.

    Attributes:
        verified: names of checkpoints whose hashes were checked before; only their sizes are checked again.
    """

    def __init__(self, storage: Storage, keep: int, every_images: int):
        self._storage, self._keep, self._every_images = storage, keep, every_images
        self.verified: set[str] = set()

    def apply(self, *spare: str | None) -> None:
        """Remove surplus checkpoints, except for those named in ``spare``."""
        found = [checkpoint for checkpoint in checkpoints_in(self._storage) if self._is_good(checkpoint)]
        for checkpoint in surplus(found, self._keep, self._every_images):
            if checkpoint.name not in spare:
                self._storage.remove(checkpoint.name)

    def _is_good(self, checkpoint: Checkpoint) -> bool:
        if checkpoint.name in self.verified:
            return checkpoint.size_problem() is None
        if checkpoint.problem() is not None:
            return False
        self.verified.add(checkpoint.name)
        return True


def surplus(found: Sequence[Checkpoint], keep: int, every_images: int) -> list[Checkpoint]:
    """Choose the checkpoints to remove from the good ones, which are given oldest first.

    The newest stays: the run resumes from it. Besides it only regular ones stay, so that interruptions make no
    difference: the newest ``keep``, the first at or after each multiple of ``every_images`` (0: none), and the newest
    that a rollback could load, now or if the next step is bad.
    """
    regular = [checkpoint for checkpoint in found if checkpoint.regular]
    multiples = {each.images // every_images: each for each in reversed(regular)} if every_images else {}
    multiples.pop(0, None)
    before_streak = [each for each in regular if each.step < found[-1].streak_from]
    needed = [*found[-1:], *regular[-keep:], *multiples.values(), *before_streak[-1:]]
    return [checkpoint for checkpoint in found if checkpoint not in needed]
