"""Copies of tensors in one piece of main memory, whose bits are checked before they are used."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gfgw_prod.distributed.checksums import checksum
from gfgw_prod.process.exit_codes import HardwareError

ALIGNMENT = 64  # bytes


class Packed:
    """Room for a copy of tensors.

    Attributes:
        bytes: the copy, and then its checksum; of one length on all ranks that have such tensors.
    """

    def __init__(self, like: Sequence[Tensor]):
        starts, end = [], 0
        for tensor in like:
            starts.append(end)
            end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        self.bytes = torch.zeros(end + 8, dtype=torch.uint8)
        self._content, self._checksum = self.bytes[:end], self.bytes[end:].view(torch.int64)
        self._views = [
            self.bytes[start : start + each.nbytes].view(each.dtype).view(each.shape)
            for start, each in zip(starts, like, strict=True)
        ]

    def pack(self, tensors: Sequence[Tensor]) -> Packed:
        """Copy tensors into it."""
        torch._foreach_copy_(self._views, [*tensors])
        self._checksum.fill_(checksum([self._content]))
        return self

    @torch.no_grad()
    def unpack(self, tensors: Sequence[Tensor]) -> None:
        """Copy it into tensors.

        Raises:
            HardwareError: if it is not what was packed.
        """
        if int(self._checksum) != int(checksum([self._content])):
            raise HardwareError("a copy of the state differs from what was copied; check that hardware")
        torch._foreach_copy_([*tensors], self._views)
