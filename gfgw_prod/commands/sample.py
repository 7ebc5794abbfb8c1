"""The command ``sample``: images of a trained generator, the same ones for any number of ranks."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from gfgw_prod.commands.options import add_drawing, add_place, path
from gfgw_prod.distributed.torchrun import rank_environment
from gfgw_prod.process.exit_codes import FINISHED, UserError, reason_of
from gfgw_prod.process.standard_streams import log, printable
from gfgw_prod.sampling.limits import MOST_SAMPLES, check_drawing, check_range

if TYPE_CHECKING:
    from gfgw_prod.distributed.world import World
    from gfgw_prod.sampling.files import ImageWriter
    from gfgw_prod.sampling.trained import TrainedGenerator

MOST_IN_A_GRID = 10_000
MOST_CLASSES = 100_000
NOT_A_DIRECTORY = (".png", ".jpg", ".jpeg", ".webp", ".gif")
T = TypeVar("T")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``sample``."""
    add_place(parser)
    add_drawing(parser, num=64)
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="directory for the images")
    parser.add_argument("--grid", action="store_true", help="one picture of all images instead of a file each")
    parser.add_argument(
        "--classes", metavar="LIST", help="classes to cycle through, ids or names, as in 0,3-5,flags (default: all)"
    )
    parser.add_argument("--batch-size", type=int, default=256, metavar="N", help="images in memory at a time (256)")


def run(options: argparse.Namespace) -> int:
    """Draw images and write them, alone or on every rank of a launcher; return the exit code."""
    check_drawing(options.num, options.seed, prefix="--")
    check_range("--batch-size", options.batch_size, 1, MOST_SAMPLES)
    if options.out.suffix.lower() in NOT_A_DIRECTORY and not options.out.is_dir():
        raise UserError(f"--out should name a directory, not a file; {options.out} looks like one")
    rank_environment()  # refuses a malformed environment before torch is imported
    from gfgw_prod.distributed.world import World
    from gfgw_prod.sampling.trained import read_trained
    from gfgw_prod.settings.reading import resolve

    trained = read_trained(options.place, raw=options.raw)
    classes = tuple(range(trained.num_classes))
    if options.classes is not None:
        classes = class_list(options.classes, trained.class_names)
        trained.check_classes(classes, "--classes")
    if options.grid and options.num > MOST_IN_A_GRID:
        raise UserError(f"--num must be at most {MOST_IN_A_GRID:,} for a grid, not {options.num}")
    settings = resolve({"run": trained.config["run"]}, {"run": {"device": options.device}}).run
    with World.joined(settings.device, settings.threads, trained.settings.distributed.timeout_seconds) as world:
        if options.grid and trained.settings.generator.conditional:
            classes = classes_of_columns(classes, world)
        _draw(trained, options, classes, world)
    return FINISHED


def class_list(text: str, names: Sequence[str] = ()) -> tuple[int, ...]:
    """Class ids of a list such as ``0,3-5,flags``, in its order; ``UserError`` if it is not such a list.

    Args:
        names: of the classes, if they have any. What is a name is no id, so that folders may be numbered.
    """
    found: list[int] = []
    for part in text.split(","):
        if (name := part.strip()) in names:
            found.append(names.index(name))
            continue
        if (match := re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", name, re.ASCII)) is None:
            known = f", or names such as {printable(', '.join(names[:10]))}" if names else ""
            raise UserError(f"--classes should be class ids and ranges such as 0,3-5{known}, not {text[:100]!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UserError(f"--classes: {first}-{last} goes backwards; write {last}-{first}")
        found += range(first, last + 1)
        if len(found) > MOST_CLASSES:
            raise UserError(f"--classes names more than {MOST_CLASSES:,} classes")
    return tuple(found)


def classes_of_columns(classes: tuple[int, ...], world: World) -> tuple[int, ...]:
    """The classes that have a column each in a grid."""
    from gfgw_prod.sampling.pictures import evenly_spread

    shown = evenly_spread(classes)
    if world.is_main and len(shown) < len(classes):
        log(f"the grid has a column for {len(shown)} of {len(classes):,} classes; --classes chooses others")
    return tuple(shown)


def _draw(trained: TrainedGenerator, options: argparse.Namespace, classes: tuple[int, ...], world: World) -> None:
    from gfgw_prod.process.meter import Meter
    from gfgw_prod.sampling.pictures import levels_of
    from gfgw_prod.sampling.sampler import CELL, Sampler, batches, cycle_classes

    def write(action: Callable[[], T]) -> T | None:
        """Write on rank 0; a failure ends all ranks."""

        def on_main() -> T | None:
            try:
                return action() if world.is_main else None
            except OSError as error:
                raise UserError(f"--out {options.out} cannot be written ({reason_of(error)})") from None

        return world.on_all_ranks(on_main)

    writer = write(lambda: _open(options, trained, classes))
    sampler = Sampler(
        world.on_all_ranks(trained.build).to(world.device),
        trained.image_shape,
        cycle_classes(classes),
        seed=options.seed,
        stream="sample",
        device=world.device,
    )
    with Meter("drawing samples", options.num, "images", enabled=world.is_main) as meter:
        for batch in batches(options.num, -(-options.batch_size // CELL) * CELL, world):
            levels = batch.gather(levels_of(sampler.images(batch.start, batch.size)), world).cpu()
            write(partial(writer.add, batch.first, levels) if writer else lambda: None)
            meter.advance_to(batch.first + batch.count)
    written = write(writer.close if writer else lambda: None)
    if written is not None:
        print(written)


def _open(options: argparse.Namespace, trained: TrainedGenerator, classes: tuple[int, ...]) -> ImageWriter:
    import torch

    from gfgw_prod.sampling.files import Grid, Pngs
    from gfgw_prod.sampling.sampler import cycle_classes

    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {options.out} cannot be made a directory ({error.strerror})") from None
    conditional = trained.settings.generator.conditional
    if options.grid:
        shown = min(len(classes), options.num) if conditional else 0
        return Grid(options.out, columns=shown if shown > 1 else max(round(options.num**0.5), 1))
    labels = cycle_classes(classes)(torch.arange(options.num)) if conditional else None
    return Pngs(options.out, options.num, labels, trained.class_names)
