"""Entry point: `python -m gfgw_prod.launcher [torchrun options] -m MODULE [arguments]`."""

from gfgw_prod.process.import_path import ignore_working_directory

ignore_working_directory()

from gfgw_prod.process.signals import exit_on_stop_signals
from gfgw_prod.process.standard_streams import prepare_streams

if __name__ == "__main__":
    prepare_streams()
    exit_on_stop_signals()  # before torch is imported, which takes seconds
    import os
    import sys
    from functools import partial

    from gfgw_prod.launcher.forks import fork_server_for
    from gfgw_prod.process.leaving import exit_at_once, exit_code_of

    # torch reads this when it is imported. We log one line for a lost peer; torch would add a C++ stack per attempt.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun's default; OpenMP reads it when it is loaded
    forks = fork_server_for(sys.argv[1:])  # imports what ranks need, while this process imports what it needs
    from gfgw_prod.launcher.job import main

    # At once: the thread that sends the rendezvous' heartbeats cannot be stopped in the middle of one.
    exit_at_once(exit_code_of(partial(main, forks)))
