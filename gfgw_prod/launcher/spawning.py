"""A signal that comes while workers are spawned waits until all of them are known, and can be told to stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing import api as torch_api

from gfgw_prod.resilience.signals import STOP

raise_now = torch_api._terminate_process_handler


@contextmanager
def spawning() -> Iterator[None]:
    """Within, a stop signal is only noted; at the end, and from then on, it raises SignalException.

    torch installs its handler right before it spawns. Raised in between, the exception would take the list of those
    that were spawned with it, and nobody would end them. To block signals does not do: workers would inherit that.
    """
    noted: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        noted.append(signum)

    torch_api._terminate_process_handler = note
    try:
        for stop in STOP:  # torch leaves out SIGUSR1, with which schedulers announce the others
            signal.signal(stop, note)
        yield
    finally:
        torch_api._terminate_process_handler = raise_now
        for stop in STOP:
            signal.signal(stop, raise_now)
    if noted:
        received = signal.Signals(noted[0])
        raise SignalException(f"got {received.name} while workers were spawned", sigval=received)
