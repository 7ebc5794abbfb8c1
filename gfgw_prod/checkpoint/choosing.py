"""Which checkpoint a run goes on from: the newest that is whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gfgw_prod.checkpoint.finding import open_checkpoint, step_directories
from gfgw_prod.checkpoint.reading import UNREADABLE, Checkpoint
from gfgw_prod.checkpoint.storage import Storage
from gfgw_prod.distributed.world import World
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.process.meter import MB, Meter, Mode
from gfgw_prod.weights.unpickling import DamagedError


class NoneGoodError(UserError):
    """There are checkpoints, and none can be used."""


def newest_good(
    storages: Sequence[Storage],
    world: World,
    report: Callable[[str], None],
    eligible: Callable[[Checkpoint], bool] = lambda found: True,
    progress: Mode = "off",
) -> Checkpoint | None:
    """The newest checkpoint whose every file matches its hash; ``None`` for a run that has none yet. Collective.

    Rank 0 chooses, all ranks share the hashing. Damaged ones above it are set aside, so that their steps can be saved
    again, and reported in a line each.

    Args:
        eligible: whether a checkpoint comes into question.
        progress: how rank 0 tells how far the hashing is.

    Raises:
        NoneGoodError: if there are checkpoints, and none is good: to begin anew is not ours to decide.
        UserError: if one is of another version, or not all ranks see the same files.
    """
    bad: list[tuple[int, str, str]] = []
    found = None
    for place, name in world.broadcast(_places(storages) if world.is_main else []):
        answer = world.broadcast(_answer(storages[place], name) if world.is_main else None)
        if isinstance(answer, UserError):
            raise answer
        if isinstance(answer, Checkpoint):
            if not eligible(answer):
                continue
            found, answer = answer, _problem_anywhere(answer, world, progress)
        if answer is None:
            break
        bad.append((place, name, answer))
        found = None
    if found is None and world.broadcast(bool(bad or quarantined(storages))):
        why = f" ({bad[0][1]}: {bad[0][2]})" if bad else ""
        raise NoneGoodError(
            f"no checkpoint in {storages[0]} is good{why}; nothing was deleted: mend one, or use another run.dir"
        )
    if world.is_main:
        for place, name, problem in bad:
            if problem.startswith(UNREADABLE):  # now; the disk or the network may be better off later
                report(f"checkpoint {name} {problem}; trying the one before")
                continue
            kept = storages[place].quarantine(name)
            report(f"checkpoint {name} is damaged ({problem}); kept as {kept}, trying the one before")
    world.barrier()
    return found


def _answer(storage: Storage, name: str) -> Checkpoint | str | UserError:
    """The checkpoint, why it is none, or what to tell the user."""
    try:
        return open_checkpoint(storage, name)
    except DamagedError as damage:
        return str(damage)
    except UserError as error:
        return error


def _problem_anywhere(checkpoint: Checkpoint, world: World, progress: Mode) -> str | None:
    """What any rank finds wrong, each with its share of the files.

    Raises:
        UserError: if a rank does not see the files that rank 0 sees.
    """
    total = checkpoint.bytes // world.world_size
    with Meter(f"checking {checkpoint.name}", total, "MB", scale=MB, mode=progress, enabled=world.is_main) as meter:
        first, *others = world.all_gather_object(checkpoint.problem(world.rank, world.world_size, meter.advance))
    other = next(filter(None, others), None)
    if first is None and other is not None and other.endswith("is missing"):
        raise UserError(f"rank 0 sees {checkpoint}, another rank does not ({other}): all ranks must share run.dir")
    return first or other


def _places(storages: Sequence[Storage]) -> list[tuple[int, str]]:
    """Index of the storage and name of every candidate, newest first, the first storage before the others."""
    found = [(step, -place, name) for place, storage in enumerate(storages) for step, name in step_directories(storage)]
    return [(-place, name) for _, place, name in sorted(found, reverse=True)]


def has_checkpoints(storages: Sequence[Storage], world: World) -> bool:
    """Whether a run has checkpoints, good or not: then it goes on from one, or does not start at all. Collective."""
    return world.broadcast(world.is_main and bool(_places(storages) or quarantined(storages)))


def quarantined(storages: Sequence[Storage]) -> list[str]:
    """Names of damaged checkpoints that are kept for a person to look at."""
    return [name for storage in storages for name in storage.quarantined()]
