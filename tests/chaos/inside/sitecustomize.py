"""Injects faults into a rank. Python imports this file at its start if its directory is on PYTHONPATH.

A fault is a file `KIND-RANK` in the directory CHAOS_FAULTS. The next forward pass of a module with gradients takes it,
once, by renaming it to `KIND-RANK.taken`. If the second line of the file names a path, the fault waits for that path.
Without such a file nothing changes.
"""

import os
import sys
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder

WATCHED = "torch.nn.modules.module"


class AfterImport:
    """Adds the hook to torch's modules once the rank imports them, without importing torch itself."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name != WATCHED:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def then_watch(module: object) -> None:
            execute(module)
            module.register_module_forward_hook(strike)

        spec.loader.exec_module = then_watch
        return spec


def taken(kind: str) -> str | None:
    """First line of the file of a fault for this rank that is due and not yet taken."""
    waiting = f"{os.environ['CHAOS_FAULTS']}/{kind}-{os.environ['RANK']}"
    if os.path.exists(waiting):
        with suppress(FileNotFoundError):
            with open(waiting, encoding="utf-8") as file:
                said, _, after = file.read().partition("\n")
            if not after or os.path.exists(after):
                os.rename(waiting, waiting + ".taken")
                return said
    return None


def strike(module: object, inputs: object, output: object) -> object:
    """Global forward hook: returns None, or another output of the module."""
    import torch

    if isinstance(module, torch.nn.GroupNorm):  # dropout comes next and may zero the fault
        return None
    if not (isinstance(output, torch.Tensor) and output.requires_grad and output.dtype == torch.float32):
        return None
    if taken("exception") is not None:
        raise RuntimeError("chaos: an exception in a step")
    if taken("nan") is not None:
        output.register_hook(lambda gradient: gradient.clone().index_fill_(0, torch.tensor(0), float("nan")))
    if (bit := taken("gradient")) is not None:
        output.register_hook(lambda gradient, which=int(bit): flipped(gradient, which))
    weight = next(iter(module.parameters(recurse=False)), None)
    if weight is not None and (bit := taken("weight")) is not None:
        weight.data.copy_(flipped(weight.data, int(bit)))  # like a memory cell that has lost its charge
    if (bit := taken("flip")) is not None:
        return flipped(output, int(bit))
    return None


def flipped(tensor: object, bit: int) -> object:
    """A copy with one bit of one number flipped."""
    import torch

    copy = tensor.clone(memory_format=torch.contiguous_format)
    copy.data.view(torch.int32).view(-1)[tensor.numel() // 2] ^= 1 << bit
    return copy


if "CHAOS_FAULTS" in os.environ:  # in the fork server, and so in its ranks
    if WATCHED in sys.modules:  # this process is a fork of another one
        sys.modules[WATCHED].register_module_forward_hook(strike)
    else:
        sys.meta_path.insert(0, AfterImport())
