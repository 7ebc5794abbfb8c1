"""A trained generator in Python: noise and class ids in, images out."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from gfgw_prod.distributed.arithmetic import arithmetic_restored, set_arithmetic
from gfgw_prod.distributed.devices import choose_device
from gfgw_prod.distributed.torchrun import RankEnvironment, rank_environment
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.process.standard_streams import printable
from gfgw_prod.sampling.limits import check_drawing
from gfgw_prod.sampling.sampler import CELL, Sampler, cycle_classes
from gfgw_prod.sampling.trained import TrainedGenerator, read_trained

Labels = int | str | Iterable[int | str] | Tensor


class Generator:
    """A trained one-step generator on a device. ``load_generator`` makes one.

    Attributes:
        image_shape: ``(c, h, w)``.
        num_classes: number of classes; 0 if the generator takes none.
        class_names: by class id; empty if the data set did not name its classes.
        step: optimisation steps of its training.
        images: images seen in training.
        config: all settings of its run.
    """

    def __init__(self, trained: TrainedGenerator, device: torch.device):
        settings = trained.settings
        self._trained, self._device, self._threads = trained, device, settings.run.threads
        with self._own_arithmetic():
            self._network = trained.build().to(device)
        self.image_shape, self.step, self.images = trained.image_shape, trained.step, trained.images
        self.num_classes = trained.num_classes if settings.generator.conditional else 0
        self.class_names = trained.class_names if self.num_classes else ()
        self.config = trained.config

    def __repr__(self) -> str:
        size, classes = " x ".join(map(str, self.image_shape)), f"{self.num_classes} classes" * (self.num_classes > 0)
        return f"<Generator of {size}{', ' * bool(classes)}{classes}, step {self.step:,}, on {self._device}>"

    def sample(self, num: int, labels: Labels | None = None, *, seed: int = 0) -> Tensor:
        """Draw the images of ``gfgw sample --num NUM --classes LABELS --seed SEED``, to the last bit.

        Args:
            labels: class ids or names, used in turn; required if the generator has classes.

        Returns:
            ``(num, c, h, w)``, float32 in [-1, 1], on the generator's device.

        Raises:
            UserError: for an argument out of range, a class that does not exist, and classes that are missing.
        """
        check_drawing(num, seed)
        sampler = Sampler(
            self._network,
            self.image_shape,
            cycle_classes(self._classes(labels)),
            seed=seed,
            stream="sample",
            device=self._device,
        )
        with torch.inference_mode(), self._own_arithmetic():
            return sampler.images(0, -(-num // CELL) * CELL)[:num]

    @torch.inference_mode()
    def from_noise(self, noise: Tensor, labels: Labels | None = None) -> Tensor:
        """Map standard normal noise ``(n, c, h, w)`` to images ``(n, c, h, w)`` in [-1, 1] in one step.

        Args:
            labels: class ids or names, used in turn; required if the generator has classes.

        Raises:
            UserError: for another shape, a class that does not exist, and classes that are missing.
        """
        if noise.dim() != 4 or noise.shape[1:] != self.image_shape:
            raise UserError(f"noise must have the shape (n, *{self.image_shape}), not {tuple(noise.shape)}")
        with self._own_arithmetic():
            classes = cycle_classes(self._classes(labels))(torch.arange(len(noise))).to(self._device)
            images: Tensor = self._network.sample(noise.to(self._device, torch.float32), classes)
            return images.clamp(-1, 1)

    @contextmanager
    def _own_arithmetic(self) -> Iterator[None]:
        """Compute within as a run does, whatever the caller's torch is set to."""
        with arithmetic_restored():
            set_arithmetic(self._device, self._threads)
            yield

    def _classes(self, labels: Labels | None) -> tuple[int, ...]:
        """The class ids, checked; empty for a generator without classes."""
        if labels is None:
            if self.num_classes:
                raise UserError(f"labels must be given: the generator was trained on {self.num_classes} classes")
            return ()
        given = labels.flatten().tolist() if isinstance(labels, Tensor) else labels
        each = given if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
        classes = tuple(map(self._class_id, each))
        if not classes:
            raise UserError("labels must not be empty")
        self._trained.check_classes(classes, "labels")
        return classes

    def _class_id(self, label: object) -> int:
        if label in self.class_names:
            return self.class_names.index(str(label))
        try:
            return operator.index(label)  # type: ignore[arg-type]
        except TypeError:
            known = f", or among {printable(', '.join(self.class_names[:10]))}" if self.class_names else ""
            raise UserError(
                f"labels must be class ids, which are whole numbers{known}; not {str(label)[:100]!r}"
            ) from None


def load_generator(
    place: str | Path, *, raw: bool = False, device: Literal["auto", "cpu", "cuda"] = "auto"
) -> Generator:
    """Load a trained generator. Reading it runs no code.

    Args:
        place: run directory, one of its checkpoints (also by URL), or a ``.safetensors`` file of ``gfgw export``.
        raw: weights as trained instead of their average.
        device: ``auto`` is a GPU if there is one.

    Raises:
        UserError: if there is no such generator, or it is damaged.
    """
    trained = read_trained(os.fspath(place), raw=raw)
    gpus = 0 if device == "cpu" else torch.cuda.device_count()
    return Generator(trained, choose_device(device, rank_environment() or RankEnvironment(), gpus))
