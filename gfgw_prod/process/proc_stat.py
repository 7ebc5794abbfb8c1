"""What Linux says of a process in ``/proc/PID/stat``."""

from __future__ import annotations

from pathlib import Path


def stat_fields(process: int | str = "self") -> list[str]:
    """The fields from the third on, as proc(5) numbers them; ``OSError`` if there is no such process or no ``/proc``.

    The second is the program's name, which may hold anything.
    """
    text = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    return text.rpartition(")")[2].split()
