"""Recognise a lost peer: an error of the connection to it, whichever library held that."""

from __future__ import annotations

import re

from torch.distributed import DistError

from gfgw_prod.distributed.lost_group import GroupLostError
from gfgw_prod.process.exit_codes import one_line

LOST = (
    r"closed by peer|reset by peer|broken pipe|connection refused|was likely closed|remote process exit|no route to"
    r"|already in use|timed out|timeout|was aborted"
)


def lost_connection(error: RuntimeError) -> str | None:
    """What happened to the connection, on one line; ``None`` if the error is of another kind."""
    message = one_line(error)
    if isinstance(error, GroupLostError):
        return message
    # NCCL and the store raise types of their own; gloo raises RuntimeError and names its source file. While gloo
    # connects, it may only say "short read", or "no error" although there was one.
    of_connection = re.search(LOST, message, re.I) or ("/gloo/transport/" in message and "enforce fail" not in message)
    if not (isinstance(error, DistError) or "/gloo/" in message) or not of_connection:
        return None
    return re.sub(r"\[\S+:\d+\] ", "", message)
