"""Which checkpoints stay."""

from __future__ import annotations

from collections.abc import Container

from gfgw_prod.checkpoint.reading import Checkpoint, checkpoints
from gfgw_prod.checkpoint.storage import Storage


def retain(
    storage: Storage, keep: int, every_images: int, verified: set[str], *, spare: Container[str | None] = ()
) -> None:
    """Removes all but the newest ``keep``, those that crossed a multiple of ``every_images`` (0: none), and ``spare``.

    Damaged ones are not counted, and not removed.

    Args:
        verified: names of those that were read back once, which is enough; their files are still looked at every time.
    """
    found = [checkpoint for checkpoint in checkpoints(storage) if _is_good(checkpoint, verified)]
    kept_multiple = None
    for checkpoint in found[:-keep]:
        multiple = checkpoint.images // every_images if every_images else 0
        if multiple and multiple != kept_multiple:
            kept_multiple = multiple  # the first one at or past each multiple
        elif checkpoint.name not in spare:
            storage.remove(checkpoint.name)


def _is_good(checkpoint: Checkpoint, verified: set[str]) -> bool:
    if checkpoint.name in verified:
        return checkpoint.incomplete() is None
    if checkpoint.problem() is not None:
        return False
    verified.add(checkpoint.name)
    return True
