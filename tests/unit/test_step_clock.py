"""Measured time of a step's phases, and measured memory of a rank."""

import mmap
import os
import time

import torch

from gfgw_prod.telemetry.catalogue import BY_TAG
from gfgw_prod.telemetry.phases import STEP_PHASES, StepClock
from gfgw_prod.training.rank_metrics import GPU_TAGS, HOST_TAGS, memory_bytes

CPU = torch.device("cpu")


def test_phases_are_means_over_the_steps_since_the_last_call() -> None:
    clock = StepClock(CPU)
    for seconds in (0.02, 0.04):
        clock.begin()
        time.sleep(seconds)
        clock.lap("generate")
        clock.lap("update")
    found = clock.take()
    phases = {f"speed/phase/{phase}" for phase in STEP_PHASES}
    assert set(found) == phases | {"transport/seconds", "transport/bytes_sent"} <= BY_TAG.keys()
    assert found["speed/phase/generate"] >= 0.03
    assert found["speed/phase/update"] < found["speed/phase/generate"]
    assert found["speed/phase/match"] == 0
    assert set(clock.take().values()) == {0.0}


def test_memory_is_what_the_system_reports() -> None:
    assert {*HOST_TAGS, *GPU_TAGS} <= BY_TAG.keys()
    resident, available = memory_bytes(CPU)
    size = 64 << 20
    with mmap.mmap(-1, size) as block:  # fresh memory, which an allocator might not take
        block.write(b"x" * size)
        assert size * 0.75 < memory_bytes(CPU)[0] - resident < size * 2
    assert size < available < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
