"""What a launcher makes of a stop signal that arrives while torch reads the clock."""

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

from gfgw_prod.launcher.agent import stop_signal_in


@pytest.fixture
def told() -> Iterator[None]:
    """A signal raises what the launcher's handler raises."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SignalException(f"got {number}", signal.Signals(number))

    before = signal.signal(signal.SIGUSR2, stop)
    yield
    signal.signal(signal.SIGUSR2, before)


def struck_before(line: str, timed: Callable[[], None]) -> BaseException:
    """What a timed function raises if a signal arrives before a line of torch's own that times it."""

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and line in lines_of(frame):
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


def lines_of(frame: FrameType) -> str:
    """The line that a frame is at."""
    with open(frame.f_code.co_filename, encoding="utf-8") as file:
        return file.readlines()[frame.f_lineno - 1]


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize("line", ["start = time.time()", "result = f("])
def test_signal_is_found_behind_torchs_own_error(line: str) -> None:
    error = struck_before(line, prof(lambda: None))
    assert isinstance(error, UnboundLocalError) == ("start" in line)
    stop = stop_signal_in(error)
    assert stop is not None
    assert stop.sigval is signal.SIGUSR2


def test_other_errors_tell_of_no_signal() -> None:
    assert stop_signal_in(UnboundLocalError("a mistake")) is None
    assert stop_signal_in(None) is None
