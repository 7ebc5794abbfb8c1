"""The last line of a process arrives whole, and its exit code reflects any error."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from gfgw_prod.process.exit_codes import CRASHED

LOG = "from gfgw_prod.process.standard_streams import log; log('a word\\nand another')"
EXIT = (
    "from gfgw_prod.process.leaving import exit_at_once, exit_code_of\n"
    "def run():\n    raise {error}('why')\n"
    "exit_at_once(exit_code_of(run))"
)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_line_is_one_write_that_no_other_process_can_split(unbuffered: str) -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # one message per write
    with here, there:
        environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        subprocess.run([sys.executable, "-c", LOG], stderr=there, env=environment, check=True)
        assert here.recv(100) == b"a word\\nand another\n"


# As torch's CheckpointException is.
@pytest.mark.parametrize("error", ["RuntimeError", "type('Bare', (BaseException,), {})"])
def test_any_error_is_a_crash_with_a_traceback(error: str) -> None:
    done = subprocess.run([sys.executable, "-c", EXIT.format(error=error)], capture_output=True, text=True, check=False)
    assert done.returncode == CRASHED
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("why\n")


@pytest.mark.parametrize(("error", "code"), [("SystemExit", 1), ("KeyboardInterrupt", -2)])
def test_system_exit_and_interrupt_are_left_to_the_interpreter(error: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", EXIT.format(error=error)], capture_output=True, text=True, check=False)
    assert done.returncode == code
