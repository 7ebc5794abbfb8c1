"""The file of settings as a job's launcher read it: restarted ranks must not see what was edited meanwhile.

The launcher passes path and content to its ranks in an environment variable.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from gfgw_prod.process.exit_codes import UserError

MOST_BYTES = 100_000  # of a file of settings; one with every setting has 4,000. A variable takes 131,072
_VARIABLE = b"GFGW_HELD_FILE"


def hold(arguments: Sequence[str], find: Callable[[str], Path], option: str = "--config") -> None:
    """Read the file that the last ``option`` means, for the processes that are started from now on.

    A file that cannot be read, or is no file of settings, is left for the ranks to complain about.

    Args:
        find: the file that a value of the option means, or its absence; ``UserError`` or ``ValueError`` if none.
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


def held(path: str | os.PathLike[str]) -> bytes | None:
    """Content of a file if the launcher holds it, else ``None``."""
    value, prefix = os.environb.get(_VARIABLE, b""), _prefix(path)
    return value[len(prefix) :] if value.startswith(prefix) else None


def _prefix(path: str | os.PathLike[str]) -> bytes:
    return os.path.normpath(os.fsencode(path)) + b"\n"
