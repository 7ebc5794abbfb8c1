"""Save checkpoints in children that get SIGKILL, and print what they leave, one JSON line for each.

Run as ``python -m tests.process.saving_worker ROOT moments COUNT`` or ``... ROOT operations``. Children are forks, so
that torch is imported once; the parent starts no thread, since a fork would lose it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..checkpoints import Keeper, choose, state, steps

ROWS = 20_000  # of each of two tensors: 640 kB
FILE_OPERATIONS = {
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.listdir",
    "os.scandir",
    "shutil.rmtree",
}


def fork(body: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            body()
        except BaseException as error:  # a fork must not return into the parent's code
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return child


def answer_of(body: Callable[[], dict[str, object]]) -> dict[str, object]:
    """Result of a function that runs in a child."""
    reading, writing = os.pipe()
    child = fork(lambda: os.write(writing, json.dumps(body()).encode()) and None)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        content = answer.read()
    assert os.waitpid(child, 0)[1] == 0
    return dict(json.loads(content))


def look(root: Path) -> dict[str, object]:
    """What a successor finds. Like a run, it first claims the root."""
    successor = Keeper(root, keep=3)
    counted = steps(successor.storage)
    found, lines = choose(successor.storage)
    wanted = None if found is None else state(found.step, ROWS)
    whole = (
        found is not None
        and wanted is not None
        and all(bool((tensor == wanted[name]).all()) for name, tensor in found.read_tensors("").items())
    )
    return {
        "found": found.step if found is not None else 0,
        "whole": whole or found is None,
        "counted": counted,
        "lines": lines,
        "left": [name for name in successor.storage.names() if not name.startswith((".writing-", "step-"))],
    }


def moments(root: Path, count: int) -> None:
    """Kill at random moments within consecutive saves."""
    chance = random.Random(0)
    for _ in range(count):
        reading, writing = os.pipe()

        def save_on_and_on(told: int = writing) -> None:
            keeper = Keeper(root, keep=3)
            found, _ = choose(keeper.storage)
            step = found.step if found is not None else 0
            while True:
                step += 1
                keeper.saver.join()
                os.write(told, step.to_bytes(4, "little"))
                keeper.start(step, state(step, ROWS))

        child = fork(save_on_and_on)
        os.close(writing)
        first = os.read(reading, 4)  # it has started
        time.sleep(chance.uniform(0, 0.08))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        started = (first + os.read(reading, 1 << 16))[-4:]
        os.close(reading)
        print(
            json.dumps(
                {
                    "signal": os.WTERMSIG(status),
                    "started": int.from_bytes(started, "little"),
                    **answer_of(partial(look, root)),
                }
            ),
            flush=True,
        )


def operations(root: Path) -> None:
    """Kill before the first, the second, ... file operation of a fourth save, until one save completes."""
    template = root / "template"
    os.waitpid(fork(lambda: Keeper(template, keep=3).save(1, 2, 3, rows=ROWS)), 0)
    number, status = 0, 1
    while status != 0:
        number += 1
        copy = shutil.copytree(template, root / str(number))

        def save_once(copy: Path = copy, fatal: int = number) -> None:
            seen = 0
            keeper = Keeper(copy, keep=3)

            def count(event: str, arguments: tuple[object, ...]) -> None:
                nonlocal seen
                if event in FILE_OPERATIONS and str(copy) in str(arguments[:1]):
                    seen += 1
                    if seen == fatal:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(count)
            keeper.save(4, rows=ROWS)

        _, status = os.waitpid(fork(save_once), 0)
        print(json.dumps({"signal": os.WTERMSIG(status), "started": 4, **answer_of(partial(look, copy))}), flush=True)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    if sys.argv[2] == "moments":
        moments(place, int(sys.argv[3]))
    else:
        operations(place)
