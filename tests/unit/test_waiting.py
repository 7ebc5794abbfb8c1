"""How long a run waits for saves and uploads, and when it stops waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fsspec import register_implementation
from fsspec.implementations.memory import MemoryFileSystem

from gfgw_prod.checkpoint import saving
from gfgw_prod.checkpoint.storages import open_storage
from gfgw_prod.checkpoint.waiting import wait_together

from ..checkpoints import ALONE, Keeper, assert_holds, choose, steps


class SlowFileSystem(MemoryFileSystem):
    """A file system that blocks writes while its gate is shut."""

    protocol = "slow"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    gate = threading.Event()

    def _open(self, path: str, mode: str = "rb", **settings: Any) -> Any:
        if path.endswith(".distcp") and mode == "wb":
            self.gate.wait()
        return super()._open(path, mode, **settings)


register_implementation("slow", SlowFileSystem, clobber=True)


@pytest.fixture
def shut() -> Iterator[threading.Event]:
    SlowFileSystem.gate.clear()
    yield SlowFileSystem.gate
    SlowFileSystem.gate.set()


@pytest.fixture
def stuck() -> Iterator[threading.Thread]:
    """A thread that does not end within the test."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    yield thread
    end.set()
    thread.join()


def test_endless_wait_is_an_error_that_names_what_it_waited_for(stuck: threading.Thread) -> None:
    with pytest.raises(TimeoutError, match=r"a save has not ended within 0:00:00\.2"):
        wait_together(ALONE, stuck, "a save", limit=timedelta(seconds=0.2))


def test_run_that_is_told_to_stop_leaves_a_slow_upload_to_the_next_start(
    tmp_path: Path, shut: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "UPLOAD_SECONDS", 0.5)
    keeper = Keeper(tmp_path, "slow://root")
    keeper.start(1)
    started = time.monotonic()
    keeper.saver.finish(lambda: True)
    assert time.monotonic() - started < 10
    assert keeper.lines == ["told to stop: the unfinished upload is left to the next start"]
    assert keeper.storage.names() == ["step-00000001"]
    shut.set()
    successor = Keeper(tmp_path, "slow://root")
    found = choose(successor.storage)[0]
    assert found is not None
    successor.saver.resume_from(found)
    successor.saver.finish()
    assert_holds(choose(open_storage("slow://root"))[0], 1)


def test_run_that_is_finished_waits_for_its_last_upload(tmp_path: Path, shut: threading.Event) -> None:
    keeper = Keeper(tmp_path, "slow://other")
    keeper.start(1)
    threading.Timer(2, shut.set).start()
    keeper.saver.finish()
    assert steps(open_storage("slow://other")) == [1]
    assert not [name for name in open_storage("slow://other").names() if name.startswith(".")]  # nor a claim


def test_wait_after_an_error_has_one_deadline_for_all_threads(
    tmp_path: Path, stuck: threading.Thread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "LAST_SECONDS", 4.0)
    saver = Keeper(tmp_path).saver
    saver._preallocating = saver._thread = stuck
    started = time.monotonic()
    saver.wait_after_error()
    assert 3.9 < time.monotonic() - started < 7.8
