"""Choose the checkpoint that a run resumes from: the newest good one. Damaged newer ones are quarantined."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gfgw_prod.checkpoint.finding import open_checkpoint, step_directories
from gfgw_prod.checkpoint.reading import UNREADABLE, Checkpoint
from gfgw_prod.checkpoint.storage import Storage
from gfgw_prod.distributed.world import World
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.process.meter import MB, Meter, Mode
from gfgw_prod.process.standard_streams import Warned
from gfgw_prod.weights.unpickling import DamagedError


class NoneGoodError(UserError):
    """There are checkpoints, but none is good."""


def newest_good(
    storages: Sequence[Storage],
    world: World,
    log: Callable[[str], None],
    eligible: Callable[[Checkpoint], bool] = lambda found: True,
    progress: Mode = "off",
) -> Checkpoint | None:
    """The newest checkpoint whose files all match their hashes; ``None`` if the run has no checkpoint. Collective.

    Rank 0 chooses, and all ranks share the hashing. Newer damaged checkpoints are quarantined, so that their steps can
    be saved again; each gets one log line.

    Raises:
        NoneGoodError: if there are checkpoints, but none is good. A run must not silently start over.
        UserError: if another version wrote a checkpoint, or not all ranks see the same files.
    """
    bad: list[tuple[int, str, str]] = []
    found = None
    for index, name in world.broadcast(_newest_first(storages) if world.is_main else []):
        opened = world.broadcast(_try_open(storages[index], name) if world.is_main else "")
        if isinstance(opened, UserError):
            raise opened
        if isinstance(opened, Checkpoint):
            if not eligible(opened):
                continue
            problem = _problem_on_any_rank(opened, world, progress)
            if problem is None:
                found = opened
                break
        else:
            problem = opened
        bad.append((index, name, problem))
    if found is None and world.broadcast(bool(bad or quarantined(storages))):
        why = f" ({bad[0][1]}: {bad[0][2]})" if bad else ""
        raise NoneGoodError(
            f"no checkpoint in {storages[0]} is good{why}; nothing was deleted: repair one, or use another run.dir"
        )
    if world.is_main:
        for index, name, problem in bad:
            if problem.startswith(UNREADABLE):  # the disk or network may recover: leave it in place
                log(Warned(f"checkpoint {name} {problem}; trying the one before"))
                continue
            new_name = storages[index].quarantine(name)
            log(Warned(f"checkpoint {name} is damaged ({problem}); kept as {new_name}, trying the one before"))
    world.barrier()
    return found


def has_checkpoints(storages: Sequence[Storage], world: World) -> bool:
    """Whether a run has any checkpoint, good or not: then it resumes from one or refuses to start. Collective."""
    return world.broadcast(world.is_main and bool(_newest_first(storages) or quarantined(storages)))


def quarantined(storages: Sequence[Storage]) -> list[str]:
    """Names of damaged checkpoints that were moved aside."""
    return [name for storage in storages for name in storage.quarantined()]


def _newest_first(storages: Sequence[Storage]) -> list[tuple[int, str]]:
    """Storage index and name of every checkpoint directory, newest first; of one step, the first storage first."""
    found = [(step, -index, name) for index, storage in enumerate(storages) for step, name in step_directories(storage)]
    return [(-index, name) for _, index, name in sorted(found, reverse=True)]


def _try_open(storage: Storage, name: str) -> Checkpoint | str | UserError:
    """The checkpoint, or its damage, or an error for the user."""
    try:
        return open_checkpoint(storage, name)
    except DamagedError as damage:
        return str(damage)
    except UserError as error:
        return error


def _problem_on_any_rank(checkpoint: Checkpoint, world: World, progress: Mode) -> str | None:
    """The first problem that any rank finds in its share of the files. Collective.

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
