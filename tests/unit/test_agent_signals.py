"""The launcher recognises a stop signal that arrives while torch times one of its methods."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from torch.distributed.elastic.metrics import prof
from torch.distributed.elastic.multiprocessing import SignalException

from gfgw_prod.launcher.endings import stop_signal_in


@pytest.fixture
def raising_handler() -> Iterator[None]:
    """SIGUSR2 raises what the launcher's handler raises."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SignalException(f"got {number}", signal.Signals(number))

    before = signal.signal(signal.SIGUSR2, stop)
    yield
    signal.signal(signal.SIGUSR2, before)


def signalled_before(line: str, timed: Callable[[], None]) -> BaseException:
    """The error of a timed function if a signal arrives before a line of torch's timing decorator."""

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and line in source_line(frame):
            sys.settrace(None)
            os.kill(os.getpid(), signal.SIGUSR2)
        return trace

    sys.settrace(trace)
    try:
        timed()
    except (SignalException, UnboundLocalError) as error:
        return error
    finally:
        sys.settrace(None)
    raise AssertionError("nothing was raised")


def source_line(frame: FrameType) -> str:
    """The source line that a frame executes."""
    with open(frame.f_code.co_filename, encoding="utf-8") as file:
        return file.readlines()[frame.f_lineno - 1]


@pytest.mark.usefixtures("raising_handler")
@pytest.mark.parametrize("line", ["start = time.time()", "result = f("])
def test_signal_is_found_behind_torchs_error(line: str) -> None:
    error = signalled_before(line, prof(lambda: None))
    assert isinstance(error, UnboundLocalError) == ("start" in line)
    stop = stop_signal_in(error)
    assert stop is not None
    assert stop.sigval is signal.SIGUSR2


def test_other_errors_hide_no_signal() -> None:
    assert stop_signal_in(UnboundLocalError("a mistake")) is None
    assert stop_signal_in(None) is None
