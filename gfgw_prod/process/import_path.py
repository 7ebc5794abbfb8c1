"""Keep the working directory off the import path. Imports only what every interpreter has loaded at its start."""

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))  # from which this package was imported


def ignore_working_directory() -> None:
    """Import nothing from the working directory, here and in child processes, unless this package lies there.

    ``python -m`` puts it first on the path, where a user's ``queue.py`` would hide the standard library's.
    """
    try:
        here = os.getcwd()
    except OSError:  # it was removed
        return
    if here != ROOT:
        os.environ["PYTHONSAFEPATH"] = "1"
        if not sys.flags.safe_path and sys.path[0] == here:
            del sys.path[0]
