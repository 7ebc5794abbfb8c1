"""A signal asks a run to stop: it sets a flag, all ranks agree at the end of a step, and the state is saved."""

from __future__ import annotations

import signal
import time
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor

from gfgw_prod.distributed.world import World
from gfgw_prod.process.signals import PREEMPTION, SAME_REQUEST_SECONDS, leave, starting


class ToldToStopError(Exception):
    """Work was left that need not be done."""


class StopRequest:
    """Whether any rank was told to stop.

    Args:
        timeout_seconds: longest wait for the other ranks.
    """

    def __init__(self, world: World, timeout_seconds: int):
        self._group = world.background_group(timedelta(seconds=timeout_seconds))
        self._told_at: float | None = None
        self._asked: tuple[Tensor, dist.Work] | None = None
        self._interrupted = False

    def listen(self) -> None:
        """From now on signals are requests. One that comes again, later, ends this process without saving."""
        for number in PREEMPTION:
            signal.signal(number, self._note)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nohup's may stay ignored
            signal.signal(signal.SIGINT, self._interrupt)
        starting.end()

    @property
    def told(self) -> bool:
        """Whether this rank was told."""
        return self._told_at is not None

    def agreed(self) -> bool:
        """Whether any rank had been told at the call before this one; alone, by now. The same on all ranks. Collective.

        The ranks' answers travel while they make the step between.

        Raises:
            KeyboardInterrupt: once more, if it came to nothing where it was raised.
        """
        if self._interrupted:
            raise KeyboardInterrupt
        if self._group is None:
            return self._told_at is not None
        told = False
        if self._asked is not None:
            flag, work = self._asked
            work.wait()
            told = bool(flag.item())
        flag = torch.tensor([int(self._told_at is not None)])
        self._asked = flag, dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return told

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        # Code in C that calls Python, to look up a tensor in a dictionary say, may take an error for "not there".
        self._interrupted = True
        raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._told_at is not None and now - self._told_at > SAME_REQUEST_SECONDS:
            leave()
        self._told_at = self._told_at or now
