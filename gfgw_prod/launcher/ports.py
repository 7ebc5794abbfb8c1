"""The port at which a round's ranks meet: kept for rank 0 until it listens there."""

import socket
import sys
from contextlib import suppress

from torch.distributed.elastic.rendezvous import api as torch_api

_kept: list[socket.socket] = []


def keep_ports() -> None:
    """From now on torch's rendezvous keeps the port that it takes."""
    if sys.platform == "linux":  # elsewhere two sockets cannot have one port so
        torch_api.get_free_port = keep_port


def keep_port() -> int:
    """A port for the next round, of those that the system gives away; the one of the last round goes.

    torch takes one, and gives it back. Rank 0 listens there some seconds later, after its imports, and until then any
    other rank's connection may get it. A port that is bound is given to nobody who does not ask for it by number, and
    with SO_REUSEADDR, which TCPStore sets too, whoever does gets it as long as nobody listens.

    Raises:
        OSError: if there is none.
    """
    kept = _bound()
    while _kept:
        _kept.pop().close()
    _kept.append(kept)
    return int(kept.getsockname()[1])


def _bound() -> socket.socket:
    if socket.has_dualstack_ipv6():
        with suppress(OSError):  # it is there, and switched off
            return _bound_to(socket.AF_INET6, "::")
    return _bound_to(socket.AF_INET, "")


def _bound_to(family: socket.AddressFamily, address: str) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.bind((address, 0))
    except OSError:
        bound.close()
        raise
    return bound
