"""Stop signals that wait until what the launcher is at has been done."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing import api as torch_api

from gfgw_prod.resilience.signals import IGNORED, STOP

raise_now = torch_api._terminate_process_handler


@contextmanager
def waiting() -> Iterator[None]:
    """Within, a stop signal is only noted; at the end, and from then on, it raises SignalException.

    While workers are spawned: torch installs its handler right before that. Raised in between, the exception would take
    the list of those that were spawned with it, and nobody would end them. To block signals does not do: workers would
    inherit that. While workers are looked at: raised between two instructions of ``Popen.poll``, it would leave its
    lock held, and whoever waits for that worker would wait for ever.
    """
    noted: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        if signum not in IGNORED:
            noted.append(signum)

    torch_api._terminate_process_handler = note
    try:
        for stop in STOP:  # torch leaves out SIGUSR1, with which schedulers announce the others
            signal.signal(stop, note)
        yield
    finally:
        torch_api._terminate_process_handler = raise_now
        for stop in STOP:
            signal.signal(stop, signal.SIG_IGN if stop in IGNORED else raise_now)
        if noted:  # also in the place of an error: who was told to stop waits for no rendezvous to come back
            received = signal.Signals(noted[0])
            raise SignalException(f"got {received.name}", sigval=received)
