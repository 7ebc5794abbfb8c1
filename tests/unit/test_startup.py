"""What a start is made of."""

import re
import subprocess
import sys
import time

import pytest

from gfgw_prod.process import clock
from gfgw_prod.telemetry.startup import Startup

ABOUT = 0.5  # seconds


def test_phases_add_up_to_the_time_since_the_process_began() -> None:
    startup = Startup()
    for phase in ("rendezvous", "first_step"):
        time.sleep(0.1)
        startup.done(phase)
    values, began = startup.values(), clock.began()
    if began is None:
        pytest.skip("the system does not tell when a process began")
    assert list(values) == ["startup/imports", "startup/rendezvous", "startup/first_step"]
    assert values["startup/rendezvous"] >= 0.1
    assert sum(values.values()) == startup.total == pytest.approx(clock.now() - began, abs=ABOUT)
    assert str(startup).startswith(f"first step after {startup.total:.1f} s: imports ")
    assert re.search(r"first step \d", str(startup))


def test_process_began_when_it_was_started() -> None:
    program = "from gfgw_prod.process import clock; print(clock.began())"
    before = clock.now()
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    if printed.strip() == "None":
        pytest.skip("the system does not tell when a process began")
    assert before - 0.02 <= float(printed) <= clock.now()


def test_launchers_share_ends_where_the_process_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    began = clock.began()
    if began is None:
        pytest.skip("the system does not tell when a process began")
    monkeypatch.setenv(clock.LAUNCHED_AT, str(began - 3.0))
    assert Startup().values()["startup/launcher"] == pytest.approx(3.0)
    assert "startup/launcher" not in Startup().values()  # told once
