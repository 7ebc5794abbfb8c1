"""Work that leaves the process of a notebook or a script as it was."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from gfgw_prod.distributed.arithmetic import arithmetic_restored
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.process.signals import handlers_restored
from gfgw_prod.process.standard_streams import log_form_restored

_busy = threading.Lock()


@contextmanager
def process_restored() -> Iterator[None]:
    """Restore at the end: signal handlers, torch's settings, the environment, the hook of threads, the form of lines.

    Raises:
        UserError: if this process trains or evaluates already, or has a process group, which would be destroyed.
    """
    if not _busy.acquire(blocking=False):
        raise UserError("another thread of this process trains or evaluates; wait for it, or start a process")
    hook = threading.excepthook
    try:
        if dist.is_initialized():
            raise UserError("torch.distributed is initialised in this process; call destroy_process_group() first")
        with handlers_restored(), arithmetic_restored(), log_form_restored():
            yield
    finally:
        threading.excepthook = hook
        _busy.release()
