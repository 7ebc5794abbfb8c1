"""The interface to torchrun: a rank's environment variables, checked, and its error file. Imports nothing heavy."""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gfgw_prod.process.durable import write_whole
from gfgw_prod.process.exit_codes import UserError


@dataclass(frozen=True)
class RankEnvironment:
    """This process's rank and world size, in the job and on its node, as torchrun's environment gives them."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def rank_environment() -> RankEnvironment | None:
    """Read and check torchrun's variables; ``None`` for a process that nobody launched as a rank.

    Raises:
        UserError: if the variables are incomplete or contradict each other. With such variables, ranks would train
            separately, or wait for one that never comes.
    """
    present = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"} & os.environ.keys()
    if not present:
        return None
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name, "").strip():
            problem = f"{min(present)} is set, {name} is not"
            raise UserError(f"torchrun's environment is incomplete: {problem}; unset or set both")
    rank, world_size = _number("RANK", 0), _number("WORLD_SIZE", 1)
    local_rank = _number("LOCAL_RANK", 0) if "LOCAL_RANK" in present else 0
    local_world_size = _number("LOCAL_WORLD_SIZE", 1) if "LOCAL_WORLD_SIZE" in present else local_rank + 1
    if not 1 <= _number("MASTER_PORT", 1) <= 65535:
        raise UserError(f"MASTER_PORT must be between 1 and 65535, not {os.environ['MASTER_PORT']}")
    for name, value, most, total in (
        ("RANK", rank, world_size - 1, "WORLD_SIZE"),
        ("LOCAL_RANK", local_rank, local_world_size - 1, "LOCAL_WORLD_SIZE"),
        ("LOCAL_WORLD_SIZE", local_world_size, world_size, "WORLD_SIZE"),
    ):
        if value > most:
            raise UserError(f"{name}, which torchrun sets, must be at most {most} by {total}, not {value}")
    return RankEnvironment(rank, world_size, local_rank, local_world_size)


def reports_for_node() -> bool:
    """Whether this process logs what all ranks of its node would log: local rank 0, and no rank at all.

    With wrong variables every rank does: they may be wrong on one rank only.
    """
    try:
        environment = rank_environment()
    except UserError:
        return True
    return environment is None or environment.local_rank == 0


def write_error_file(error: Exception) -> None:
    """Write an error's message to the file in which plain torchrun looks for it, so that its report says why.

    torchrun stops a node's other ranks once one has exited, perhaps local rank 0 before that has logged the error. Our
    own launcher sets no such file.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE", os.devnull)
    if file == os.devnull:
        return
    with suppress(OSError):  # whole or not at all: torchrun fails on half a file
        write_whole(Path(file), json.dumps({"message": str(error), "timestamp": int(time.time())}).encode())


def _number(name: str, least: int) -> int:
    value = os.environ[name]
    if not re.fullmatch("[0-9]{1,9}", value) or int(value) < least:
        raise UserError(f"{name}, which torchrun sets, must be a whole number of at least {least}, not {value!r}")
    return int(value)
