"""Errors of a connection are distinguished from all others, by what torch really raises."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest
import torch
from torch.distributed import TCPStore

from gfgw_prod.distributed.lost_peers import lost_connection

SHORT = timedelta(seconds=1)


def test_store_that_nobody_hosts_is_a_lost_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(RuntimeError) as caught:
        TCPStore("127.0.0.1", port, is_master=False, timeout=SHORT)
    assert "\n" not in (lost_connection(caught.value) or "\n")


def test_timeout_is_a_lost_connection() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=SHORT)
    with pytest.raises(RuntimeError) as caught:
        store.get("never set")
    assert "\n" not in (lost_connection(caught.value) or "\n")


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2) @ torch.zeros(3)
    assert lost_connection(caught.value) is None
    assert lost_connection(RuntimeError("the data loader timed out")) is None
