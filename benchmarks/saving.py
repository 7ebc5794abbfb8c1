"""Time and memory of saving, loading and verifying checkpoints of 61.8 million parameters."""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from gfgw_prod.checkpoint.choosing import newest_good
from gfgw_prod.checkpoint.finding import checkpoints_in
from gfgw_prod.checkpoint.local_storage import LocalStorage
from gfgw_prod.checkpoint.reading import State
from gfgw_prod.checkpoint.saving import Saver
from gfgw_prod.checkpoint.staging import tensor_bytes
from gfgw_prod.distributed.world import World
from gfgw_prod.generator import build_generator
from gfgw_prod.settings.presets import presets
from gfgw_prod.settings.reading import read_yaml, resolve
from gfgw_prod.settings.running import CheckpointSettings

REPEATS = 5
FACTS = {
    **{fact: {} for fact in ("config", "packages")},
    **{fact: [] for fact in ("frozen_weights", "changes", "image_shape")},
    **dict.fromkeys(("data_fingerprint", "arithmetic"), ""),
    "num_classes": 10,
}


def training_state() -> State:
    """Weights, EMA and both AdamW moments of the CIFAR-10 generator, and a bank of 50,000 rows."""
    with torch.device("meta"):
        settings = resolve(read_yaml(presets()["seed_report"])).generator
        generator = build_generator(settings, (3, 32, 32), 10, seed=0)
    stream = torch.Generator().manual_seed(0)
    state = {
        f"{part}.{name}": torch.randn(parameter.shape, generator=stream)
        for part in ("generator", "ema", "optimizer.exp_avg", "optimizer.exp_avg_sq")
        for name, parameter in generator.named_parameters()
    }
    return state | {"bank.rows": torch.randn(50_000, 384, generator=stream)}


def resident(field: str) -> int:
    """Resident bytes of this process: now (``VmRSS``), or the peak since ``reset_peak`` (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def drop_caches() -> bool:
    """Drop the page cache, so that the next read comes from the disk. False without the permission."""
    try:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        return False
    return True


def main() -> None:
    torch.set_num_threads(1)
    world = World(rank=0, world_size=1, device=torch.device("cpu"))
    state = training_state()
    size = sum(map(tensor_bytes, state.values()))
    parameters = sum(tensor.numel() for name, tensor in state.items() if name.startswith("generator."))
    print(f"{parameters:,} parameters, a state of {size / 1e6:,.0f} MB")
    with tempfile.TemporaryDirectory(dir=".") as scratch:
        storage = LocalStorage(Path(scratch))
        saver = Saver(CheckpointSettings(keep=2), [storage], world, print)
        gc.collect()
        before = resident("VmRSS")
        reset_peak()
        saver.preallocate(state)
        time.sleep(3)  # the time of the steps before a first save
        blocked, total = [], []
        for step in range(1, REPEATS + 2):
            started = time.perf_counter()
            blocked.append(seconds(lambda step=step: saver.save(state, step=step, images=step, facts=FACTS)))
            saver.join()
            total.append(time.perf_counter() - started)
        extra = resident("VmHWM") - before
        print(f"first save: training waits {blocked[0]:.2f} s of {total[0]:.2f} s, {blocked[0] / total[0]:.1%}")
        later, of = statistics.median(blocked[1:]), statistics.median(total[1:])
        print(f"later saves (median of {REPEATS}): {later:.2f} s of {of:.2f} s, {later / of:.1%}")
        print(f"memory beyond the state: {extra / 1e6:,.0f} MB, {extra / size:.2f} of its size")

        def unverified() -> None:
            checkpoints_in(storage)[-1].load(state, world)

        def verified() -> None:
            found = newest_good([storage], world, print)
            assert found is not None
            found.load(state, world)

        for name, prepare in (("from the disk", drop_caches), ("from the page cache", lambda: True)):
            if not prepare():
                print(f"loads {name}: not measured, dropping the page cache needs root")
                continue
            times: dict[str, list[float]] = {"unverified": [], "verified": []}
            for _ in range(REPEATS):
                for kind, action in (("unverified", unverified), ("verified", verified)):
                    prepare()
                    times[kind].append(seconds(action))
            plain, checked = (statistics.median(times[kind]) for kind in times)
            print(f"loads {name}: unverified {plain:.2f} s, verified {checked:.2f} s, {checked / plain:.2f} x")
