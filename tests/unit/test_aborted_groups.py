"""Groups of NCCL are aborted from a thread when ranks come or go, and what that needs of torch.

No GPU has run this: groups are Python objects, and of torch's own only names and their documentation are looked at.
"""

from __future__ import annotations

import inspect
import multiprocessing
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed import HashStore, ProcessGroupNCCL, distributed_c10d

from gfgw_prod.distributed import lost_group
from gfgw_prod.distributed.lost_group import NCCL_VARIABLES, Connections, GroupLostError, groups_not_split
from gfgw_prod.distributed.lost_peers import lost_connection
from gfgw_prod.distributed.world import World
from gfgw_prod.process.exit_codes import CRASHED
from gfgw_prod.settings.reading import resolve

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finding a group's sockets needs /proc")
HEADER = Path(torch.__file__).parent / "include/torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp"


class Group(dist.ProcessGroup):
    """A group of NCCL whose abort waits until another one is aborted too."""

    def __init__(self, both: threading.Barrier):
        super().__init__(0, 2)
        self.both, self.aborted = both, 0

    def abort(self) -> None:
        self.both.wait(20)
        self.aborted += 1


class Failing(Group):
    """A group whose abort fails."""

    def abort(self) -> None:
        raise RuntimeError("NCCL error\nand where it was")


def registered(patch: pytest.MonkeyPatch, kind: type[Group], count: int = 2) -> list[Group]:
    both = threading.Barrier(2)
    groups = [kind(both) for _ in range(count)]
    for group in groups:
        patch.setitem(distributed_c10d._world.pg_map, group, ("nccl", None))
    return groups


def test_all_groups_are_aborted_side_by_side_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    groups, connections = registered(monkeypatch, Group), Connections()
    connections.require_whole()
    connections.shut_down()
    connections.shut_down()
    connections.forget()
    assert [group.aborted for group in groups] == [1, 1]
    with pytest.raises(GroupLostError) as caught:
        connections.require_whole()
    assert lost_connection(caught.value) == str(caught.value)
    connections.begin_anew()
    connections.require_whole()


@pytest.mark.parametrize(("kind", "why"), [(Group, "it took more than 0.2 s"), (Failing, "NCCL error")])
def test_process_ends_whose_groups_cannot_be_aborted(
    kind: type[Group], why: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lost_group, "ABORT_SECONDS", 0.2)
    registered(monkeypatch, kind, count=1)  # whose partner never comes

    def stuck() -> None:
        Connections().shut_down()
        time.sleep(15)

    process = multiprocessing.get_context("fork").Process(target=stuck)
    process.start()
    process.join(10)
    assert process.exitcode == CRASHED
    assert f"could not be aborted ({why})" in capfd.readouterr().err


def test_torch_has_what_aborting_a_group_needs() -> None:
    """Fails first when torch changes: then read what ``lost_group.py`` says of it again, in the new source."""
    header = HEADER.read_text(encoding="utf-8")
    assert {name for name in NCCL_VARIABLES if name.startswith("TORCH_") and f'"{name}"' not in header} == set()
    assert "NoHandling = 0" in header
    assert "getDumpTimeout" in header  # by four times which a watchdog sleeps after a failure
    assert "void abort() override" in header
    for kind in (dist.ProcessGroup, ProcessGroupNCCL):
        assert "abort all operations and connections" in str(kind.abort.__doc__)
    assert list(inspect.signature(distributed_c10d._abort_process_group).parameters) == ["group"]
    aborts = inspect.getsource(distributed_c10d._abort_process_group)
    assert "pg_to_abort.abort()" in aborts
    assert "turned off (i.e. set to 0)" in aborts  # TORCH_NCCL_ASYNC_ERROR_HANDLING
    shuts_down = inspect.getsource(dist.destroy_process_group)  # which skips communicators that were aborted
    assert "pg_to_shutdown.shutdown()" in shuts_down
    assert "_unregister_all_process_groups()" in shuts_down


def test_torch_keeps_a_groups_backend_where_it_is_looked_up() -> None:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        everyone = dist.group.WORLD
        assert everyone is not None
        assert lost_group._groups() == {everyone: "gloo"}
        device = torch.device("cuda", 0)
        everyone.bound_device_id = device
        with groups_not_split():
            assert everyone.bound_device_id is None  # else a device mesh splits it
        assert everyone.bound_device_id == device
        everyone.bound_device_id = None
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("written", "on_cpu", "on_gpu"),
    [("auto", True, False), (True, True, True), ("true", True, True), (False, False, False), ("False", False, False)],
)
def test_ranks_on_gpus_go_on_in_place_only_if_that_is_asked_for(written: object, on_cpu: bool, on_gpu: bool) -> None:
    settings = resolve({"resilience": {"in_place": written}}).resilience
    assert settings.goes_on_in_place(on_gpu=False) == on_cpu
    assert settings.goes_on_in_place(on_gpu=True) == on_gpu


def test_what_ranks_on_gpus_get_from_groups_that_were_shut_down_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost_group.connections, "_whole", False)
    with pytest.raises(GroupLostError):
        World(0, 2, torch.device("cuda", 0)).require_peers()
    World(0, 2, torch.device("cpu")).require_peers()  # gloo's operations raise themselves
    World(0, 1, torch.device("cuda", 0)).require_peers()
