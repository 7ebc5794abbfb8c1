"""Entry point: `python -m gfgw_prod.launcher [torchrun options] -m MODULE [arguments]`."""

import os

from gfgw_prod.process.import_path import ignore_working_directory

ignore_working_directory()

from gfgw_prod.process.signals import exit_on_stop_signals

if __name__ == "__main__":
    exit_on_stop_signals()  # before torch is imported, which takes seconds
    from gfgw_prod.process.leaving import exit_at_once, exit_code_of

    # torch reads this when it is imported. We log one line for a lost peer; torch would add a C++ stack per attempt.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from gfgw_prod.launcher.job import main

    # At once: the thread that sends the rendezvous' heartbeats cannot be stopped in the middle of one.
    exit_at_once(exit_code_of(main))
