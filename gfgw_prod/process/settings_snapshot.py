"""A snapshot of the settings file, taken by a job's launcher: restarted ranks must not see later edits.

The launcher passes path and content to its ranks in an environment variable.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from gfgw_prod.process.exit_codes import UserError

MOST_BYTES = 100_000  # of a settings file; one with every setting has 4,000. A variable takes 131,072
_VARIABLE = b"GFGW_SETTINGS_SNAPSHOT"


def take(arguments: Sequence[str], find: Callable[[str], Path], option: str = "--config") -> None:
    """Take a snapshot of the file that the last ``option`` names, for processes that are started from now on.

    None is taken of a file that cannot be read or is no settings file: the ranks report that.

    Args:
        find: returns the file for a value of the option, empty if it is not given; ``UserError`` or ``ValueError`` if
            there is none.
    """
    os.environb.pop(_VARIABLE, None)
    following = zip(arguments, [*arguments[1:], ""], strict=False)
    paths = [word.partition("=")[2] or after for word, after in following if word.partition("=")[0] == option]
    try:
        path = find(paths[-1] if paths else "")
        if not path.is_file():
            return
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, UserError, ValueError):
        return
    if len(content) <= MOST_BYTES and b"\0" not in content:
        os.environb[_VARIABLE] = _prefix(path) + content


def snapshot_of(path: str | os.PathLike[str]) -> bytes | None:
    """Content of a file in the launcher's snapshot; ``None`` if the snapshot is of no or another file."""
    value, prefix = os.environb.get(_VARIABLE, b""), _prefix(path)
    return value[len(prefix) :] if value.startswith(prefix) else None


def _prefix(path: str | os.PathLike[str]) -> bytes:
    return os.path.normpath(os.fsencode(path)) + b"\n"
