"""Entry point of ``python -m gfgw_prod`` and of the command ``gfgw``.

The order matters. Importing torch takes seconds, and a stop signal may come meanwhile. So the standard streams and the
signals are set up first, by modules that import quickly; the commands are imported last. In a fork server everything is
imported before the signals are set up; its ranks begin there.
"""

import sys

from gfgw_prod.process.import_path import ignore_working_directory

ignore_working_directory()  # before anything is imported that a file there could hide

from gfgw_prod.process.standard_streams import prepare_streams

prepare_streams()  # first: the next file to be opened would get the number of a closed stream

import os

if "GFGW_FORK_SERVER" in os.environ:  # no other process waits for these imports before it sets up its signals
    from gfgw_prod.process.fork_server import serve_forks

    serve_forks()

from gfgw_prod.process.signals import PREEMPTION, exit_on_stop_signals

if sys.argv[1:2] == ["train"]:  # other commands keep no state: a signal just ends them
    exit_on_stop_signals(PREEMPTION)

import threading

from gfgw_prod.process.leaving import die_with_agent, exit_at_once, exit_code_of


def main() -> int:
    """Run one command, alone or as a rank of a launcher. Returns its exit code."""
    die_with_agent()
    # torch reads this when it is imported. We log one line for a lost peer; torch would add C++ stacks.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    from gfgw_prod.commands.cli import main as run

    code = exit_code_of(run)
    # A daemon thread may still be inside torch: a save that goes on after an error, or prefetching by torchdata.
    if any(thread.daemon for thread in threading.enumerate()):
        exit_at_once(code)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
