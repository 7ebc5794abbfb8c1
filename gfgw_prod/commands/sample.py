"""The command ``sample``: images of a trained generator, the same ones on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from gfgw_prod.distributed.world import World
from gfgw_prod.process.exit_codes import FINISHED, UserError, reason_of
from gfgw_prod.process.meter import Meter
from gfgw_prod.sampling import pictures
from gfgw_prod.sampling.files import Form, ImageWriter, image_writer
from gfgw_prod.sampling.sampler import CELL, Sampler, batches, cycle_classes, sampling_times
from gfgw_prod.sampling.trained import TrainedGenerator, read_trained
from gfgw_prod.settings.reading import resolve

MOST_IN_A_GRID = 10_000
T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """What to draw.

    Attributes:
        count: images.
        classes: that take turns; ``None`` is all.
        steps: predictions of an image.
        batch_size: images of one rank in one batch, rounded up to whole cells.
    """

    count: int
    out: Path
    form: Form
    seed: int
    classes: tuple[int, ...] | None
    steps: int
    batch_size: int
    raw: bool
    device: str


def sample_images(place: str, request: Request) -> int:
    """Draws and writes images; alone, or on every rank of a launcher, of which rank 0 writes.

    Raises:
        UserError: if there is no good checkpoint, a class is unknown, or ``out`` cannot be written.
    """
    trained = read_trained(place, raw=request.raw)
    classes = _classes(trained, request)
    if request.form == "grid" and request.count > MOST_IN_A_GRID:
        raise UserError(f"--num must be at most {MOST_IN_A_GRID:,} for a grid, not {request.count}; use --npz")
    run = resolve({"run": trained.config["run"]}, {"run": {"device": request.device}}).run
    with World.joined(run.device, run.threads, trained.settings.distributed.timeout_seconds) as world:
        _draw(trained, request, classes, world)
    return FINISHED


def _draw(trained: TrainedGenerator, request: Request, classes: tuple[int, ...], world: World) -> None:
    labels_of = cycle_classes(classes)
    sink = world.together(lambda: _opened(request, trained, classes) if world.is_main else None)
    sampler = Sampler(
        world.together(trained.build).to(world.device),
        trained.image_shape,
        labels_of,
        seed=request.seed,
        stream="sample",
        device=world.device,
        times=sampling_times(request.steps, trained.least_time),
    )

    def write(action: Callable[[ImageWriter], T]) -> T | None:
        """What rank 0 cannot write ends all ranks."""

        def attempt() -> T | None:
            try:
                return action(sink) if sink is not None else None
            except OSError as error:
                raise UserError(f"--out {request.out} cannot be written ({reason_of(error)})") from None

        return world.together(attempt)

    try:
        with Meter("drawing samples", request.count, "images", enabled=world.is_main) as meter:
            for batch in batches(request.count, -(-request.batch_size // CELL) * CELL, world):
                levels = batch.gather(pictures.levels_of(sampler.images(batch.start, batch.size)), world).cpu()
                write(partial(_add, first=batch.first, levels=levels))
                meter.advance_to(batch.first + batch.count)
        told = write(lambda its: its.close())
    except BaseException:
        if sink is not None:
            sink.discard()
        raise
    if told is not None:
        print(told)


def _add(sink: ImageWriter, first: int, levels: Tensor) -> None:
    sink.add(first, levels)


def _opened(request: Request, trained: TrainedGenerator, classes: tuple[int, ...]) -> ImageWriter:
    try:
        request.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {request.out} cannot be made a directory ({error.strerror})") from None
    conditional = trained.settings.generator.conditional
    labels = cycle_classes(classes)(torch.arange(request.count)) if conditional else None
    try:
        return image_writer(request.form, request.out, request.count, labels, trained.image_shape)
    except OSError as error:
        raise UserError(f"--out {request.out} cannot be written ({reason_of(error)})") from None


def _classes(trained: TrainedGenerator, request: Request) -> tuple[int, ...]:
    if request.classes is None:
        return tuple(range(trained.num_classes))
    if not trained.settings.generator.conditional:
        raise UserError("--classes: the generator was not trained on classes (generator.conditional false)")
    for each in request.classes:
        if each >= trained.num_classes:
            raise UserError(f"--classes must be below {trained.num_classes}, the number of classes, not {each}")
    return request.classes
