"""Loads weights from the ``.pkl`` files of EDM's published networks (Karras et al. 2022, arXiv:2206.00364).

Those files contain source code, which EDM's own library executes when it unpickles them. Here nothing is executed:
objects become plain records of their state, and only tensors are read from them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gfgw_prod.process.exit_codes import UserError, one_line
from gfgw_prod.weights.unpickling import DamagedError, unpickle

# Tensors of the files that SongUNet does not have: the augmentation's input and constants of the resampling.
UNUSED = ("map_augment.weight", "resample_filter")
# Parameters that an unconditional file lacks. They are set to zero, so that labels have no effect at first.
OPTIONAL = ("map_label.weight", "map_label.bias")


class _Record:
    """State of a module of any class; of EDM's own, taken instead of executing ``meta["module_src"]``."""

    def __init__(self, meta: dict[str, Any] | None = None, *_: Any) -> None:
        self.state: dict[str, Any] = meta["state"] if meta else {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state


ALLOWED: dict[tuple[str, str], Any] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Record,
    ("dnnlib.util", "EasyDict"): dict,
    ("collections", "OrderedDict"): None,
    ("builtins", "set"): None,
    ("torch.nn.modules.container", "ModuleDict"): _Record,
    ("torch.nn.modules.container", "ModuleList"): _Record,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch._utils", "_rebuild_tensor_v2"): None,
    ("torch.storage", "_load_from_bytes"): lambda stored: torch.load(BytesIO(stored), "cpu", weights_only=True),
}


def read_edm(path: Path) -> dict[str, Tensor]:
    """Read the EMA network's tensors from a file, by the names of ``SongUNet.state_dict()``.

    Raises:
        UserError: if the file is missing, is not one of EDM's, or refers to anything outside ``ALLOWED``.
    """
    if not os.path.isfile(path):
        raise UserError(f"generator.pretrained: no file {path}; it must be a network .pkl of EDM")
    try:
        ema = unpickle(path.read_bytes(), ALLOWED)["ema"]
        return dict(_tensors(ema.state["_modules"]["model"], ""))
    except DamagedError as damage:
        raise UserError(f"generator.pretrained {path} is refused: {damage}") from None
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"generator.pretrained {path} is no network of EDM: {one_line(repr(error), 200)}") from None


def _tensors(module: _Record, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for kind in ("_parameters", "_buffers"):
        for name, tensor in module.state[kind].items():
            if isinstance(tensor, Tensor):
                yield prefix + name, tensor
    for name, child in module.state["_modules"].items():
        if isinstance(child, _Record):
            yield from _tensors(child, f"{prefix}{name}.")


def load_edm(network: nn.Module, path: Path) -> str:
    """Load a file's weights into a ``SongUNet``; return one line of text that says which tensors were used.

    Raises:
        UserError: if the file cannot be read, or its network has other layers or shapes.
    """
    found = {name: tensor for name, tensor in read_edm(path).items() if not name.endswith(UNUSED)}
    own = dict(network.named_parameters())
    zeroed = [name for name in own if name not in found and name in OPTIONAL]
    wrong = sorted((found.keys() ^ own.keys()) - {*OPTIONAL})
    wrong += sorted(name for name in found.keys() & own.keys() if found[name].shape != own[name].shape)
    if wrong:
        raise UserError(
            f"generator.pretrained {path} is of another network: {len(wrong)} of {len(own)} tensors differ, "
            f"{wrong[0]} first; the settings must be the file's"
        )
    with torch.no_grad():
        for name in found.keys() & own.keys():
            own[name].copy_(found[name])
        for name in zeroed:
            own[name].zero_()
    unused = sorted(found.keys() - own.keys())
    text = f"{len(own) - len(zeroed)} of {len(own)} tensors from {path}"
    text += f"; zero: {', '.join(zeroed)}" if zeroed else ""
    return text + (f"; not used: {', '.join(unused)}" if unused else "")
