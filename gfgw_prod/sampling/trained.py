"""A trained generator, read from a checkpoint or from an exported safetensors file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gfgw_prod.checkpoint.finding import find_checkpoints
from gfgw_prod.generator import OneStepGenerator, build_generator
from gfgw_prod.process.exit_codes import UserError, one_line
from gfgw_prod.settings.config import Config
from gfgw_prod.settings.reading import resolve
from gfgw_prod.weights.digest import weights_digest

NUMBERS = ("num_classes", "step", "images")
TEXTS = ("weights", "weights_sha256", "data_fingerprint")


@dataclass(frozen=True)
class TrainedGenerator:
    """Weights, and everything needed to build their generator."""

    tensors: dict[str, Tensor]  # by name, as in ``build_generator(...).state_dict()``
    config: dict[str, Any]  # all settings of the run
    image_shape: tuple[int, int, int]  # (c, h, w)
    num_classes: int  # of the data set, even if the generator is unconditional
    step: int
    images: int  # seen in training
    weights: str  # ``ema`` (averaged) or ``raw`` (as trained)
    weights_sha256: str  # digest of the checkpoint, as ``inspect`` shows it
    data_fingerprint: str = ""  # of the training data; empty in files of older versions
    class_names: tuple[str, ...] = ()  # by class id, if the data set names its classes

    @property
    def settings(self) -> Config:
        """Sections ``run`` and ``generator``; others may contain settings that only an older version knew."""
        return resolve({section: self.config[section] for section in ("run", "generator")})

    @property
    def kind_of_weights(self) -> str:
        """The kind of weights in words."""
        return {"ema": "averaged weights", "raw": "weights as trained"}[self.weights]

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of an exported file; ``tensors_sha256`` is the digest of its own tensors."""
        described = {name: json.dumps(getattr(self, name)) for name in ("config", "image_shape", "class_names")}
        described |= {name: str(getattr(self, name)) for name in (*NUMBERS, *TEXTS)}
        return described | {"tensors_sha256": weights_digest(self.tensors)}

    def check_classes(self, classes: Iterable[int], name: str) -> None:
        """Raise ``UserError`` if the generator takes no classes, or not all that a user gives as ``name``."""
        if not self.settings.generator.conditional:
            raise UserError(f"{name}: the generator was not trained on classes (generator.conditional false)")
        for each in classes:
            if each < 0:
                raise UserError(f"{name} must be at least 0, not {each}")
            if each >= self.num_classes:
                raise UserError(f"{name} must be below {self.num_classes}, the number of classes, not {each}")

    def build(self) -> OneStepGenerator:
        """Build the generator on the CPU, in evaluation mode; ``UserError`` if the weights do not fit the settings."""
        settings = self.settings.generator
        try:
            with torch.device("meta"):  # skips drawing initial weights
                generator = build_generator(settings, self.image_shape, self.num_classes, seed=0)
            generator.load_state_dict(self.tensors, assign=True)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"the weights do not fit the generator's settings: {one_line(error, 300)}") from None
        return generator.eval()


def read_trained(place: str, *, raw: bool) -> TrainedGenerator:
    """Read the generator of a run's newest good checkpoint, of one checkpoint, or of a file that ``export`` wrote.

    Raises:
        UserError: if there is none, it is damaged, or it lacks the weights asked for.
    """
    if os.path.isfile(place):
        trained = read_file(Path(place))
        if raw and trained.weights != "raw":
            raise UserError(f"{place} holds averaged weights only; export the run with --raw for weights as trained")
        return trained
    found = next((each for each in reversed(find_checkpoints(place)) if each.problem() is None), None)
    if found is None:
        raise UserError(f"{place} has no undamaged checkpoint; see gfgw inspect {place} --verify")
    both = found.read_tensors("generator.", "ema.")
    prefix = "generator." if raw else "ema."
    channels, height, width = found.manifest["image_shape"]
    return TrainedGenerator(
        tensors={name.removeprefix(prefix): tensor for name, tensor in both.items() if name.startswith(prefix)},
        config=found.manifest["config"],
        image_shape=(channels, height, width),
        num_classes=found.manifest["num_classes"],
        step=found.step,
        images=found.images,
        weights="raw" if raw else "ema",
        weights_sha256=weights_digest(both),
        data_fingerprint=found.manifest["data_fingerprint"],
        class_names=tuple(found.manifest.get("class_names", ())),
    )


def read_file(path: Path) -> TrainedGenerator:
    """Read what ``to_safetensors`` wrote; ``UserError`` if it is missing, damaged, or not written by ``export``."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        channels, height, width = (int(size) for size in json.loads(metadata["image_shape"]))
        rest: dict[str, Any] = {name: int(metadata[name]) for name in NUMBERS}
        rest |= {name: metadata[name] for name in TEXTS if name in metadata}
        rest["class_names"] = tuple(json.loads(metadata.get("class_names", "[]")))
        trained = TrainedGenerator(tensors, json.loads(metadata["config"]), (channels, height, width), **rest)
        whole = weights_digest(tensors) == metadata["tensors_sha256"] and trained.settings is not None
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not a generator exported as safetensors ({one_line(error, 200)})") from None
    if not whole:
        raise UserError(f"{path} is damaged: its tensors do not match their SHA-256")
    return trained


def to_safetensors(trained: TrainedGenerator) -> bytes:
    """Serialise the generator as safetensors, always to the same bytes."""
    from safetensors.torch import save

    content = save({name: tensor.contiguous() for name, tensor in trained.tensors.items()}, trained.metadata)
    # The library writes metadata in random order, so rewrite the header: 8 bytes of length, then JSON.
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header = header.ljust(-(-len(header) // 8) * 8)  # tensors are aligned to 8 bytes
    return len(header).to_bytes(8, "little") + header + content[end:]
