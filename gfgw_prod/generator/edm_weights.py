"""Weights of EDM's published networks (Karras et al. 2022, arXiv:2206.00364) as a start, from their ``.pkl`` files.

Those files hold objects with their own source code, which their library runs when it unpickles them. Here the code is
never looked at: objects become plain records of their state, from which tensors are taken.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gfgw_prod.process.exit_codes import UserError, one_line
from gfgw_prod.weights.unpickling import DamagedError, unpickle

# Without a counterpart here: the augmentation's input, and constants of the resampling.
UNUSED = ("map_augment.weight", "resample_filter")
# Ours that an unconditional file has not: zero, so that the network begins as the file's, whatever the label.
OPTIONAL = ("map_label.weight", "map_label.bias")


class _Record:
    """A module's state, whatever class it was of."""

    def __init__(self, *_: Any) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state


def _reconstructed(meta: dict[str, Any]) -> _Record:
    """In place of running ``meta["module_src"]``."""
    record = _Record()
    record.state = meta["state"]
    return record


def _storage(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


ALLOWED: dict[tuple[str, str], Any] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _reconstructed,
    ("dnnlib.util", "EasyDict"): dict,
    ("collections", "OrderedDict"): None,
    ("builtins", "set"): None,
    ("torch.nn.modules.container", "ModuleDict"): _Record,
    ("torch.nn.modules.container", "ModuleList"): _Record,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_tensor_v2"): None,
    ("torch.storage", "_load_from_bytes"): _storage,
}


def read_edm(path: Path) -> dict[str, Tensor]:
    """Tensors of the averaged network in one of EDM's files, by the names of ``SongUNet.state_dict()``.

    Raises:
        UserError: if there is no such file, it is not one of EDM's, or it asks for anything that such a file does not.
    """
    if not os.path.isfile(path):
        raise UserError(f"generator.pretrained: no file {path}; it must be a network .pkl of EDM")
    try:
        content = unpickle(path.read_bytes(), ALLOWED)
        ema = content["ema"]
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
    """Fills a ``SongUNet`` with a file's weights; returns in words what was and was not filled.

    Raises:
        UserError: if the file cannot be read, or is of a network of other layers or shapes.
    """
    found = {name: tensor for name, tensor in read_edm(path).items() if not name.endswith(UNUSED)}
    own = dict(network.named_parameters())
    lacking = [name for name in own if name not in found and name in OPTIONAL]
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
        for name in lacking:
            own[name].zero_()
    left = sorted(found.keys() - own.keys())
    told = f"{len(own) - len(lacking)} of {len(own)} tensors from {path}"
    told += f"; zero: {', '.join(lacking)}" if lacking else ""
    return told + (f"; not used: {', '.join(left)}" if left else "")
