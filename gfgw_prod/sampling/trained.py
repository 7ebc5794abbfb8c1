"""A trained generator apart from its run: taken out of a checkpoint, or kept in one safetensors file."""

from __future__ import annotations

import json
import os
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
from gfgw_prod.settings.removed import without_removed
from gfgw_prod.weights.digest import weights_digest


@dataclass(frozen=True)
class TrainedGenerator:
    """Weights, and all that is needed to make them a generator again.

    Args:
        tensors: by the names of ``build_generator(...).state_dict()``.
        config: every setting of the run, resolved.
        image_shape: ``(c, h, w)``.
        num_classes: of the data set, also if the generator knows none.
        step: optimisation steps made.
        images: images seen.
        weights: ``ema`` (averaged) or ``raw`` (as trained).
        weights_sha256: the checkpoint's digest, as ``inspect`` shows it.
        data_fingerprint: of the data set that it was trained on; empty in files of versions that did not write it.
    """

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    image_shape: tuple[int, int, int]
    num_classes: int
    step: int
    images: int
    weights: str
    weights_sha256: str
    data_fingerprint: str = ""

    @property
    def settings(self) -> Config:
        """The sections that matter to a generator; the others may be of a version that had other settings."""
        return resolve(without_removed({section: self.config[section] for section in ("run", "generator")}))

    @property
    def least_time(self) -> float:
        """The least time that it was trained at for good, where a sampler of several steps should not go below."""
        try:
            return float(self.config["time"]["stage2_range"][0])
        except (KeyError, TypeError, ValueError, IndexError):  # of a version that had other settings
            return 0.0

    @property
    def metadata(self) -> dict[str, str]:
        """What an exported file says of itself; ``tensors_sha256`` is a digest of the very tensors in it."""
        return {
            "config": json.dumps(self.config),
            "image_shape": json.dumps(self.image_shape),
            "num_classes": str(self.num_classes),
            "step": str(self.step),
            "images": str(self.images),
            "weights": self.weights,
            "weights_sha256": self.weights_sha256,
            "data_fingerprint": self.data_fingerprint,
            "tensors_sha256": weights_digest(self.tensors),
        }

    def build(self) -> OneStepGenerator:
        """The generator on the CPU, in evaluation mode.

        Raises:
            UserError: if the weights are not those of a generator of these settings.
        """
        settings = self.settings.generator
        try:
            with torch.device("meta"):  # no weights are drawn only to be replaced
                generator = build_generator(settings, self.image_shape, self.num_classes, seed=0)
            generator.load_state_dict(self.tensors, assign=True)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"the weights do not fit the generator's settings: {one_line(error, 300)}") from None
        return generator.eval()


def read_trained(place: str, *, raw: bool) -> TrainedGenerator:
    """The generator of a run's newest whole checkpoint, of one checkpoint, or of a file that ``export`` wrote.

    Args:
        raw: weights as trained instead of their average.

    Raises:
        UserError: if there is none, it is damaged, or it does not hold the weights asked for.
    """
    if os.path.isfile(place):
        trained = read_file(Path(place))
        if raw and trained.weights != "raw":
            raise UserError(f"{place} holds averaged weights alone; export the run with --raw for those as trained")
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
    )


def load_generator(path: str | Path) -> OneStepGenerator:
    """The generator of a safetensors file that ``export`` wrote, on the CPU, in evaluation mode.

    ``generator.sample(noise, labels).clamp(-1, 1)`` makes images ``(n, c, h, w)`` of standard normal noise of the same
    shape and, if it is conditional, class ids ``(n,)``. Reading the file runs no code.

    Raises:
        UserError: if the file is missing, damaged, or not such a file.
    """
    return read_file(Path(path)).build()


def read_file(path: Path) -> TrainedGenerator:
    """What ``to_safetensors`` wrote.

    Raises:
        UserError: if the file is missing, damaged, or not such a file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        channels, height, width = (int(size) for size in json.loads(said["image_shape"]))
        trained = TrainedGenerator(
            tensors=tensors,
            config=json.loads(said["config"]),
            image_shape=(channels, height, width),
            num_classes=int(said["num_classes"]),
            step=int(said["step"]),
            images=int(said["images"]),
            weights=said["weights"],
            weights_sha256=said["weights_sha256"],
            data_fingerprint=said.get("data_fingerprint", ""),
        )
        whole = weights_digest(tensors) == said["tensors_sha256"] and trained.settings is not None
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no generator exported as safetensors ({one_line(error, 200)})") from None
    if not whole:
        raise UserError(f"{path} is damaged: its tensors do not match their SHA-256")
    return trained


def to_safetensors(trained: TrainedGenerator) -> bytes:
    """The generator as the bytes of a safetensors file, the same ones every time."""
    from safetensors.torch import save

    content = save({name: tensor.contiguous() for name, tensor in trained.tensors.items()}, trained.metadata)
    # The library writes metadata in a random order: the header, JSON behind its length in 8 bytes, is written anew.
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header = header.ljust(-(-len(header) // 8) * 8)  # tensors begin at a multiple of 8
    return len(header).to_bytes(8, "little") + header + content[end:]
