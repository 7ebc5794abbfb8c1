"""The port at which ranks meet is rank 0's, and nobody else's."""

from __future__ import annotations

import errno
import socket

import pytest
from torch.distributed import TCPStore

from gfgw_prod.launcher.torch_changes import reserve_port


def error_of_asking_for(port: int) -> int | None:
    with socket.socket() as asks:
        try:
            asks.bind(("", port))
        except OSError as error:
            return error.errno
    return None


@pytest.mark.parametrize("libuv", [True, False])
def test_rank_0_gets_it_and_others_do_not(libuv: bool) -> None:
    port = reserve_port()
    assert error_of_asking_for(port) == errno.EADDRINUSE
    with pytest.raises(ConnectionRefusedError):  # nobody who comes early meets the launcher
        socket.create_connection(("127.0.0.1", port))
    store = TCPStore("localhost", port, 2, is_master=True, wait_for_workers=False, use_libuv=libuv)
    store.set("key", "value")
    peer = TCPStore("localhost", port, 2, is_master=False, wait_for_workers=False, use_libuv=libuv)
    assert peer.get("key") == b"value"


def test_the_last_rounds_port_is_given_back() -> None:
    port = reserve_port()
    assert reserve_port() != port
    assert error_of_asking_for(port) is None
