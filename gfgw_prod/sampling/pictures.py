"""Sample pictures: drawing, grids, PNG files."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from gfgw_prod.process.durable import write_whole
from gfgw_prod.sampling.sampler import CELL, Sampler, cycle_classes

MOST_COLUMNS = 32  # of a grid with a class a column
SHOWN_SIDE = 64  # pixels; tiny images are enlarged to about this size in grids


def draw_samples(
    generator: torch.nn.Module,
    image_shape: tuple[int, int, int],
    classes: Sequence[int],
    *,
    count: int,
    seed: int,
    stream: str,
    device: torch.device,
    before_cell: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Draw one-step samples ``(count, c, h, w)`` in [-1, 1] with class ids ``(count,)``, on the CPU.

    Sample ``i`` has noise of stream ``(seed, stream, i)`` and class ``classes[i mod len(classes)]``.
    """
    labels_of = cycle_classes(classes)
    sampler = Sampler(generator, image_shape, labels_of, seed=seed, stream=stream, device=device)
    pieces = []
    for start in range(0, count, CELL):
        before_cell()
        pieces.append(sampler.images(start, CELL).cpu())
    return torch.cat(pieces)[:count], labels_of(torch.arange(count))


def columns_of(labels: Tensor) -> list[int]:
    """The classes that a grid shows, a column each: all that occur, or 32 of them, evenly spread."""
    return evenly_spread(labels.unique().tolist())


def evenly_spread(classes: Sequence[int]) -> list[int]:
    """All of these classes, or as many of them as a grid has columns."""
    shown = min(len(classes), MOST_COLUMNS)
    return [classes[column * len(classes) // shown] for column in range(shown)]


def rows_of_classes(labels: Tensor, classes: Sequence[int], count: int, order: Tensor) -> Tensor:
    """Ids of ``count`` rows of each class, the first ones of an order ``(N,)``; ``(count * len(classes),)``.

    They come in turn, one of each class; a class that has fewer repeats them.
    """
    found = (order[labels[order] == each] for each in classes)
    return torch.stack([ids[torch.arange(count) % len(ids)] for ids in found], dim=1).flatten()


def levels_of(images: Tensor) -> Tensor:
    """Quantise images in [-1, 1] to 256 levels, uint8, as in files and in evaluation."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def enlarge(images: Tensor, shown_side: int = SHOWN_SIDE) -> Tensor:
    """Enlarge tiny images by repeating pixels."""
    factor = max(shown_side // images.shape[-1], 1)
    return images.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


def grid_of(levels: Tensor, columns: int, gap: int = 2) -> Tensor:
    """Arrange images ``(n, 1|3, h, w)``, uint8, as one picture ``(3, H, W)``; tiny ones are enlarged."""
    rows = -(-len(levels) // columns)
    tiles = pad(enlarge(levels.expand(-1, 3, -1, -1)), (gap, 0, gap, 0, 0, 0, 0, rows * columns - len(levels)))
    picture = tiles.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    return pad(picture, (0, gap, 0, gap))


def write_png(picture: Tensor, path: Path) -> None:
    """Write a picture ``(3, h, w)`` of bytes as PNG, completely or not at all."""
    from PIL import Image

    encoded = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(encoded, format="PNG")
    write_whole(path, encoded.getvalue(), sync=False)
