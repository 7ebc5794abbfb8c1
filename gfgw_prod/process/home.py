"""The home directory in paths that users give."""

import os


def expand_home(path: str) -> str:
    """Replace a leading ``~`` or ``~name`` by that user's home directory. URLs stay as they are.

    Raises:
        ValueError: if there is no such home directory.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError(f"be a path of a known home directory; write ./{path[:100]} for a name with ~")
    return expanded
