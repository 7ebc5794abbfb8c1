"""``python -m gfgw_prod``, and the command ``gfgw``."""

from gfgw_prod.process.standard_streams import open_closed_streams

open_closed_streams()  # before anything is opened: it would get the number of a stream that is closed

from gfgw_prod.process.signals import leave_before_training

leave_before_training()  # before anything else is imported: that takes seconds, in which a signal may come

import os
import threading

from gfgw_prod.process.leaving import code_of, die_with_agent, end


def main() -> int:
    """Runs a command, alone or as a rank of a launcher; returns the exit code."""
    die_with_agent()
    # Read once, by torch's import. A peer that cannot be reached gets a line of ours; torch would add C++ stacks to it.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    from gfgw_prod.commands.cli import main as run

    code = code_of(run)
    if any(thread.daemon for thread in threading.enumerate()):  # a save after an error, or torchdata's that prefetch
        end(code)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
