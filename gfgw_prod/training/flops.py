"""Floating-point operations of the networks per image, counted on the meta device, and peaks of GPUs.

Passes that are repeated to save memory count once. Couplings, norms and the optimiser do not count.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gfgw_prod.data.sources import Table
from gfgw_prod.distributed.world import World
from gfgw_prod.generator import build_generator
from gfgw_prod.settings.config import Config
from gfgw_prod.settings.training import PrecisionName
from gfgw_prod.telemetry.build import device_model
from gfgw_prod.training.objective import Objective

META = torch.device("meta")
# Dense operations a second by a part of the GPU's name: in fp16 and bf16, in TF32, in float32 (NVIDIA's data sheets).
PEAKS: dict[str, tuple[float, float, float]] = {
    "A100": (312e12, 156e12, 19.5e12),
    "H100 PCIe": (756e12, 378e12, 51e12),
    "H100": (989e12, 495e12, 67e12),
    "H200": (989e12, 495e12, 67e12),
    "B200": (2250e12, 1100e12, 75e12),
    "L40S": (362e12, 183e12, 91.6e12),
    "L4": (121e12, 60e12, 30.3e12),
    "A10": (125e12, 62.5e12, 31.2e12),
    "V100": (125e12, 15.7e12, 15.7e12),
    "T4": (65e12, 8.1e12, 8.1e12),
}


class FlopsRate:
    """Operations of the networks a second, and their share of the GPUs' peak (MFU)."""

    def __init__(self, config: Config, objective: Objective, table: Table, world: World):
        self._config, self._objective, self._table, self._world = config, objective, table, world
        self._per_image: float | None = None

    def values(self, images_per_second: float) -> dict[str, float]:
        """Metrics by catalogue tag, on rank 0. The first call counts the operations."""
        config, device = self._config, self._world.device
        if not self._world.is_main:
            return {}
        if self._per_image is None:
            self._per_image = flops_per_image(config, self._objective, self._table.image_shape, self._table.num_classes)
        values = {"speed/model_flops": self._per_image * images_per_second}
        if device.type == "cuda" and (peak := peak_of(device_model(device), config.train.precision)) is not None:
            values["speed/mfu"] = values["speed/model_flops"] / (peak * self._world.world_size)
        return values


def peak_of(gpu: str, precision: PrecisionName) -> float | None:
    """Peak operations a second of a GPU by its name; ``None`` if it is not known."""
    column = {"bf16": 0, "fp16": 0, "tf32": 1, "fp32": 2}[precision]
    return next((peaks[column] for name, peaks in PEAKS.items() if name in gpu), None)


def flops_per_image(config: Config, objective: Objective, shape: tuple[int, int, int], classes: int) -> float:
    """Operations per image, mean over steps at t = 1 and before: multiplications and additions of products count.

    Args:
        objective: its networks are copied without their weights.
        shape: of an image.
        classes: of the data set.
    """
    with META:
        generator = build_generator(config.generator, shape, classes, config.seed)
    extractor = _on_meta(objective.extractor)
    perceptual = None if objective.perceptual is None else _on_meta(objective.perceptual)
    image, time = torch.zeros(1, *shape, device=META), torch.ones(1, device=META)
    label = torch.zeros(1, dtype=torch.long, device=META)
    graded = image.clone().requires_grad_()

    generate, train = _count(lambda: generator(image, time, label))
    extract, compare = _count(lambda: extractor(graded))
    if not config.loss.compares_features:
        compare = 0
    if perceptual is not None:
        compare += _count(lambda: perceptual(graded, image))[1]

    one_step = train + max(compare, extract)
    if config.consistency.stages:
        matched = extract if config.couples_by_noise else generate + extract
        earlier = matched + generate + train
    else:
        earlier = generate + extract + train + compare
    share = config.train.one_step_share
    return share * one_step + (1 - share) * earlier


def _on_meta(network: nn.Module) -> nn.Module:
    """A copy of a frozen network without its numbers."""
    tensors = [*network.parameters(), *network.buffers()]
    without = {id(each): each.detach().to(META) for each in tensors}
    for each in network.parameters():
        without[id(each)] = nn.Parameter(without[id(each)], requires_grad=False)
    return copy.deepcopy(network, without)


def _count(forward: Callable[[], Tensor]) -> tuple[int, int]:
    """Operations of a forward pass, and of the forward and the backward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        result = forward().sum()
        alone = int(counter.get_total_flops())
        result.backward()
    return alone, int(counter.get_total_flops())
