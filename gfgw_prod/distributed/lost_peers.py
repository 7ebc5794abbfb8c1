"""How a rank notices that a peer is gone: by an error of their connection, in the words of whoever held it."""

from __future__ import annotations

import re

from torch.distributed import DistError

from gfgw_prod.process.exit_codes import one_line

ENDED = (
    r"closed by peer|reset by peer|broken pipe|connection refused|was likely closed|remote process exit|no route to"
    r"|already in use"
)
LATE = r"timed out|timeout"


def lost_connection(error: RuntimeError) -> str | None:
    """What happened to the connection, in one line; ``None`` for an error of any other kind."""
    message = one_line(error)
    # NCCL's and the store's errors have types of their own; gloo's name its source file.
    if not (isinstance(error, DistError) or "/gloo/" in message) or not re.search(f"{ENDED}|{LATE}", message, re.I):
        return None
    return re.sub(r"\[\S+:\d+\] ", "", message)
