"""Which checkpoints stay."""

from __future__ import annotations

from collections.abc import Container

from gfgw_prod.checkpoint.reading import checkpoints
from gfgw_prod.checkpoint.storage import Storage


def retain(storage: Storage, keep: int, every_images: int, *, spare: Container[str | None] = ()) -> None:
    """Removes all but the newest ``keep``, those that crossed a multiple of ``every_images`` (0: none), and ``spare``.

    Called after a commit, so that the newest is whole. Damaged ones are not counted, and not removed.
    """
    found = checkpoints(storage)
    kept_multiple = None
    for checkpoint in found[: -keep or None]:
        multiple = checkpoint.images // every_images if every_images else 0
        if multiple and multiple != kept_multiple:
            kept_multiple = multiple  # the first one at or past each multiple
        elif checkpoint.name not in spare:
            storage.remove(checkpoint.name)
