"""Copies of each rank's share of the state in main memory of the next rank, where no two ranks hold the same share.

Every few steps a rank copies its share, and sends the copy to the next rank of a ring during the following steps. If a
rank is lost, all return to the newest step with complete copies: the survivors restore their own copies, and the new
rank receives that of its predecessor from the next rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from gfgw_prod.distributed.packed import Packed
from gfgw_prod.distributed.world import World

NO_STEP = -1


@dataclass
class _Pair:
    """Copies of one step: this rank's share, and the share of the previous rank on the ring."""

    own: Packed
    before: Tensor
    step: int = NO_STEP
    spent: float = 0.0
    is_whole: bool = False  # whether the previous rank's share has arrived


class PeerCopies:
    """The two newest pairs of copies, one of which may be in flight. Collective.

    Args:
        share: local tensors of this rank's share.
        timeout_seconds: longest wait for another rank.
    """

    def __init__(self, world: World, share: Sequence[Tensor], every_steps: int, timeout_seconds: int):
        self._world, self._every = world, every_steps
        own = [Packed(share) for _ in range(2)]
        sizes = world.all_gather_object(len(own[0].bytes))
        before = sizes[world.rank - 1]
        self._older, self._newer = (_Pair(each, torch.zeros(before, dtype=torch.uint8)) for each in own)
        self._group = world.background_group(timedelta(seconds=timeout_seconds))
        self._sent: dist.Work | None = None
        self._received: dist.Work | None = None

    def is_due(self, step: int) -> bool:
        """Whether copies should be made after this step."""
        return step % self._every == 0

    def make(self, step: int, share: Sequence[Tensor], spent: float) -> None:
        """Copy this rank's share, and begin to send it. Collective.

        Args:
            spent: productive seconds that led to the state.
        """
        self.wait()
        self._world.barrier()  # every rank has the newer copies, so the older ones may be overwritten
        self._older, self._newer = self._newer, self._older
        pair, ranks = self._newer, self._world.world_size
        pair.is_whole, pair.step, pair.spent = False, step, spent
        pair.own.pack(share)
        self._sent = dist.isend(pair.own.bytes, (self._world.rank + 1) % ranks, self._group)
        self._received = dist.irecv(pair.before, (self._world.rank - 1) % ranks, self._group)

    def wait(self) -> None:
        """Wait for the copies in flight."""
        self._receive()
        if self._sent is not None:
            self._sent.wait()
            self._sent = None

    def end(self) -> None:
        """Free the process group after the loss of a rank. Copies that have arrived stay."""
        with suppress(RuntimeError):
            self._receive()
        with suppress(RuntimeError):
            self.wait()
        self._sent = self._group = None

    def held(self) -> dict[tuple[int, int], float]:
        """The shares that this rank can restore: productive seconds by step and rank."""
        found = {}
        for pair in (self._older, self._newer):
            if pair.step != NO_STEP:
                found[pair.step, self._world.rank] = pair.spent
                if pair.is_whole:
                    found[pair.step, (self._world.rank - 1) % self._world.world_size] = pair.spent
        return found

    def own(self, step: int) -> Packed:
        """The copy of this rank's share after a step."""
        return self._at(step).own

    def before(self, step: int) -> Tensor:
        """The bytes of the previous rank's share after a step."""
        return self._at(step).before

    def _at(self, step: int) -> _Pair:
        return next(pair for pair in (self._newer, self._older) if pair.step == step)

    def _receive(self) -> None:
        if self._received is not None:
            received, self._received = self._received, None
            received.wait()
            self._newer.is_whole = True
