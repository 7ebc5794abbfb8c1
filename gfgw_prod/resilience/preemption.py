"""Requests in training to save, and perhaps to stop: a rank raises a flag, and all agree on it at the end of a step."""

from __future__ import annotations

import signal
from collections.abc import Callable
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor

from gfgw_prod.distributed.world import World
from gfgw_prod.process.signals import in_main_thread, on_stop_request


class StopRequest:
    """Whether a rank of this run received a stop signal, or finds that a save is due or its time is up.

    Args:
        is_save_due, is_time_up: what this rank's clock says.

    Attributes:
        save_is_due: whether a save is due, as all ranks agree. Whoever saves sets it to false.
        time_is_up: whether the run should end now, as all ranks agree.
    """

    def __init__(
        self, world: World, timeout_seconds: int, is_save_due: Callable[[], bool], is_time_up: Callable[[], bool]
    ):
        self._group = world.background_group(timedelta(seconds=timeout_seconds))
        self._is_save_due, self._is_time_up = is_save_due, is_time_up
        self.requested_here = False  # on this rank
        self.save_is_due = self.time_is_up = False
        self._pending: tuple[Tensor, dist.Work] | None = None
        self._interrupted = False

    def install_handlers(self) -> None:
        """Replace the handlers of the start, under which a signal exits at once: from now on there is state to save."""
        if not in_main_thread():
            return
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nohup makes it ignored: leave that
            signal.signal(signal.SIGINT, self._interrupt)
        on_stop_request(self._request)

    def requested_anywhere(self) -> bool:
        """Whether any rank got a stop signal. Collective, the same on all ranks.

        With several ranks the answer is one call old: the all-reduce runs between two calls, so no step waits for it.

        Raises:
            KeyboardInterrupt: again, if the one that Ctrl-C raised got lost.
        """
        if self._interrupted:
            raise KeyboardInterrupt
        if self._group is None:
            self.save_is_due, self.time_is_up = self._is_save_due(), self._is_time_up()
            return self.requested_here
        requested = False
        if self._pending is not None:
            flags, work = self._pending
            work.wait()
            requested, self.save_is_due, self.time_is_up = map(bool, flags.tolist())
        here = self.requested_here, not self.save_is_due and self._is_save_due(), self._is_time_up()
        flags = torch.tensor(here, dtype=torch.int64)
        self._pending = flags, dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return requested

    def _request(self) -> None:
        self.requested_here = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        # C code that calls Python, such as a dictionary lookup with a tensor as key, may swallow the exception.
        self._interrupted = True
        raise KeyboardInterrupt
