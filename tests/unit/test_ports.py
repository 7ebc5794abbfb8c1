"""The rendezvous port is reserved for rank 0."""

from __future__ import annotations

import errno
import socket

import pytest
from torch.distributed import TCPStore

from gfgw_prod.launcher.torch_changes import reserve_port


def bind_error(port: int) -> int | None:
    with socket.socket() as other:
        try:
            other.bind(("", port))
        except OSError as error:
            return error.errno
    return None


@pytest.mark.parametrize("libuv", [True, False])
def test_rank_0_gets_the_port_and_others_do_not(libuv: bool) -> None:
    port = reserve_port()
    assert bind_error(port) == errno.EADDRINUSE
    with pytest.raises(ConnectionRefusedError):  # a rank that connects early does not reach the launcher
        socket.create_connection(("127.0.0.1", port))
    store = TCPStore("localhost", port, 2, is_master=True, wait_for_workers=False, use_libuv=libuv)
    store.set("key", "value")
    peer = TCPStore("localhost", port, 2, is_master=False, wait_for_workers=False, use_libuv=libuv)
    assert peer.get("key") == b"value"


def test_port_of_the_last_round_is_released() -> None:
    port = reserve_port()
    assert reserve_port() != port
    assert bind_error(port) is None
