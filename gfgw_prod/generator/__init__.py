"""The one-step generator: U-Net, preconditioning, EMA, and weights to start from."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

from gfgw_prod.distributed.cells import seeded_globally
from gfgw_prod.generator.edm_weights import load_edm
from gfgw_prod.generator.precondition import SIGMA_DATA, OneStepGenerator, interpolate
from gfgw_prod.generator.unet import SongUNet, UNetBlock
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.weights.published import EDM, obtain

if TYPE_CHECKING:
    from gfgw_prod.settings.networks import GeneratorSettings

__all__ = [
    "SIGMA_DATA",
    "OneStepGenerator",
    "SongUNet",
    "UNetBlock",
    "build_generator",
    "interpolate",
    "start_generator",
]


def build_generator(
    settings: GeneratorSettings, image_shape: tuple[int, int, int], num_classes: int, seed: int
) -> OneStepGenerator:
    """Build the generator on torch's default device, with weights drawn from the stream ``weights`` of ``seed``.

    Images have the shape ``(channels, side, side)``; ``UserError`` if the side cannot be halved once per level.
    """
    classes = num_classes if settings.conditional else 0
    own = {"conditional", "correlation", "pretrained"}  # all others are the network's
    try:
        # On the meta device nothing is drawn, and another thread may be using the global generator.
        on_meta = torch.get_default_device().type == "meta"
        with nullcontext() if on_meta else seeded_globally(seed, "weights"):
            network = SongUNet(image_shape[-1], image_shape[0], label_dim=classes, **settings.model_dump(exclude=own))
    except ValueError as error:
        raise UserError(str(error)) from None
    return OneStepGenerator(network, num_classes=classes, correlation=settings.correlation)


def start_generator(
    settings: GeneratorSettings,
    image_shape: tuple[int, int, int],
    num_classes: int,
    seed: int,
    log: Callable[[str], None],
) -> OneStepGenerator:
    """Build the generator with random weights or, if ``generator.pretrained`` is set, with a published network's.

    Raises:
        UserError: if the settings do not fit the images or the published network, or its file cannot be read.
    """
    generator = build_generator(settings, image_shape, num_classes, seed)
    if settings.pretrained is not None:
        known = EDM.get(str(settings.pretrained))
        with nullcontext(settings.pretrained) if known is None else obtain(known, None, log) as path:
            log(f"generator: {load_edm(generator.network, path)}")
    return generator
