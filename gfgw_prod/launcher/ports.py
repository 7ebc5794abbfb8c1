"""The port at which a round's ranks meet: kept for rank 0 until it listens there."""

import socket

_kept: list[socket.socket] = []


def keep_port() -> int:
    """A port for the next round, of those that the system gives away; the one of the last round goes.

    torch takes one, and gives it back. Rank 0 listens there some seconds later, after its imports, and until then any
    other rank's connection may get it. A port that is bound is given to nobody who does not ask for it by number, and
    with SO_REUSEADDR, which TCPStore sets too, whoever does gets it as long as nobody listens.

    Raises:
        OSError: if there is none.
    """
    while _kept:
        _kept.pop().close()
    both = socket.has_dualstack_ipv6()
    kept = socket.socket(socket.AF_INET6 if both else socket.AF_INET, socket.SOCK_STREAM)
    _kept.append(kept)
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if both:
        kept.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    kept.bind(("::" if both else "", 0))
    return int(kept.getsockname()[1])
