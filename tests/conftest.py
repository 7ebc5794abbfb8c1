"""Options of the whole suite, and the order of its tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from gfgw_prod.process.standard_streams import log_form_restored

from .workers import BESIDE_THE_IMAGE, IN_TURN, OF_THE_IMAGE, Failures, FilesInTurn

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # tests import onnxruntime too
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background job; processes under test inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _lines_as_before() -> Iterator[None]:
    """A run within a test changes how lines are written; the next test starts without that."""
    with log_form_restored():
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough", action="store_true", help="as many steps, kills and runs as the documentation speaks of"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Failures(config), "failures-at-once")


# Not pytest-xdist's own groups: it writes them into the ids of tests in a way that pytest 9.2 no longer reads.
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesInTurn:
    return FilesInTurn(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files of one worker, which take longest together, and leave the image for the end."""
    order = (*IN_TURN, *OF_THE_IMAGE, *BESIDE_THE_IMAGE)
    items.sort(key=lambda item: order.index(stem) if (stem := item.path.stem) in order else len(IN_TURN) - 0.5)
