"""``python -m gfgw_prod``, and the command ``gfgw``."""

import os
import sys
import threading

from gfgw_prod.resilience.orphans import die_with_agent
from gfgw_prod.resilience.signals import starting

BACKGROUND = {"save", "upload", "warm"}  # threads of the package that an error may leave behind


def main() -> int:
    """Runs a command, alone or as a rank of a launcher; returns the exit code."""
    # Before anything else is imported: that takes seconds, in which a signal may come, or the agent may end.
    if sys.argv[1:2] == ["train"]:
        starting.begin()
    die_with_agent()
    from gfgw_prod.cli import main as run

    try:
        code = run()
    except Exception:
        sys.excepthook(*sys.exc_info())
        code = 1
    if any(thread.name in BACKGROUND for thread in threading.enumerate()):
        # Interpreters before 3.14 unwind such threads through torch's C++ frames at their end, which aborts.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
