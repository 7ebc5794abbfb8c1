"""Which step a run goes on from after a loss, who gives what, and copies whose bits changed."""

from __future__ import annotations

import pytest
import torch

from gfgw_prod.distributed.packed import Packed
from gfgw_prod.process.exit_codes import HardwareError
from gfgw_prod.training.kept import newest_restorable


def test_new_rank_of_ddp_takes_the_state_from_another() -> None:
    assert newest_restorable([{(7, 0)}, set(), {(7, 0)}], 1) == (7, [0, 2, 2])


def test_new_rank_of_hsdp_takes_its_shard_from_a_replica() -> None:
    assert newest_restorable([{(7, 0)}, {(7, 1)}, set(), {(7, 1)}], 2) == (7, [0, 1, 0, 3])


def test_shard_that_no_replica_has_cannot_be_given() -> None:
    assert newest_restorable([{(7, 0)}, set(), {(7, 0)}, set()], 2) is None


def test_ranks_of_fsdp_go_back_to_the_newest_step_of_which_all_shards_are_copied() -> None:
    zero, two = {(14, 0), (10, 0), (10, 2), (5, 0), (5, 2)}, {(14, 2), (10, 2), (5, 2), (5, 1)}
    assert newest_restorable([zero, set(), two], 3) == (5, [0, 2, 2])  # the copy of step 10 had not arrived at rank 2
    assert newest_restorable([zero, set(), two | {(10, 1)}], 3) == (10, [0, 2, 2])


def test_shard_is_lost_with_its_copy() -> None:
    assert newest_restorable([{(10, 0), (10, 2)}, set(), set()], 3) is None


def test_nobody_holds_anything() -> None:
    assert newest_restorable([set(), set()], 1) is None


def tensors() -> list[torch.Tensor]:
    whole = torch.arange(12.0).view(3, 4)
    return [whole[:, 1:3], torch.tensor(-0.0, dtype=torch.float64), torch.empty(0, 4), torch.arange(5)]


def test_packed_tensors_come_back_with_their_bits() -> None:
    packed = Packed(tensors()).pack(tensors())
    arrived = Packed(tensors())
    arrived.bytes.copy_(packed.bytes)
    found = [torch.ones_like(tensor) for tensor in tensors()]
    arrived.unpack(found)
    for tensor, expected in zip(found, tensors(), strict=True):
        assert torch.equal(tensor, expected)
    assert found[1].signbit()


@pytest.mark.parametrize("at", [0, 40, -1])
def test_packed_tensors_of_which_a_bit_changed_are_refused(at: int) -> None:
    packed = Packed(tensors()).pack(tensors())
    packed.bytes[at] ^= 4
    with pytest.raises(HardwareError, match="a copy of the state differs from what was copied"):
        packed.unpack(tensors())
