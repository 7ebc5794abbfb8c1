"""Entry point: `python -m gfgw_prod.launcher [torchrun options] -m MODULE [arguments]`."""

import os

from gfgw_prod.process.signals import leave_when_told

if __name__ == "__main__":
    leave_when_told()
    from gfgw_prod.process.leaving import code_of, end

    # Read once, by the import. A peer that is lost gets a line of ours; torch would add a C++ stack for each attempt.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from gfgw_prod.launcher.job import main

    # The thread of a rendezvous' heartbeats cannot be stopped while it is in one.
    end(code_of(main))
