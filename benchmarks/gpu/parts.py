"""The parts of the check."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import normalize

from benchmarks.gpu.check import ROOT, Part, Place, Row, digest_of
from benchmarks.gpu.full_size import Steps, local_config, synchronise
from benchmarks.gpu.replaced import replaced
from benchmarks.gpu.variants import VARIANTS
from gfgw_prod.checkpoint.staging import Stage
from gfgw_prod.distributed.arithmetic import set_arithmetic, set_tf32
from gfgw_prod.distributed.world import World
from gfgw_prod.evaluation.distances import Moments, frechet_distance
from gfgw_prod.settings import reading
from gfgw_prod.training.state import CONSTANT, training_state
from gfgw_prod.transport.fgw import fused_gromov_wasserstein

FIRST_VERSION = "7.8 to 8.2"  # seconds for 1,000 images on an A100, of the method's first version
SMALL = {  # of the large networks, for a test
    "generator": {"model_channels": 8, "channel_mult": [1, 1], "num_blocks": 1},
    "features": {"image_size": 28},
    "train": {"batch_size": 8, "cell_size": 4, "precision": "fp32"},  # some CPUs are slow at bfloat16
    "transport": {"iterations": "fixed", "outer_iterations": 2, "inner_iterations": 4},
}


def world_of(place: Place) -> World:
    """One rank on the device."""
    set_arithmetic(place.device, threads=1)
    return World(0, 1, place.device)


def versions(place: Place) -> Iterator[Row]:
    """What runs where, and what doctor finds."""
    yield Row("versions", "torch", torch.__version__)
    yield Row("versions", "python", sys.version.split()[0])
    on_gpu = place.device.type == "cuda"
    yield Row("versions", "device", torch.cuda.get_device_name(place.device) if on_gpu else "cpu")
    command = [sys.executable, "-m", "gfgw_prod", "doctor", "--json"]
    for finding in json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=False).stdout):
        if finding["state"] != "ok":
            yield Row("doctor", finding["check"], finding["detail"][:60], None if finding["state"] == "note" else False)


def variants(place: Place) -> Iterator[Row]:
    """Two steps of every variant, and how often the host waits in the second."""
    names = ["subset", "bf16"] if place.small else list(VARIANTS)
    world = world_of(place)
    for name in names:
        config = local_config("digits", VARIANTS[name], place.directory)
        steps = Steps(config, world)
        steps.take()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if place.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("warn")
            steps.checked(1, steps._stream)
            if place.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        steps.close()
        waits = sum("synchronizing" in str(each.message) for each in caught)
        yield Row("variants", f"{name}: waits of the second step", waits, True)


def digits(place: Place) -> Iterator[Row]:
    """A run with audits, and the same one killed and resumed."""
    kimg = 1.28 if place.small else 25.6
    options = (
        *("--config", "digits", "--train.total-kimg", str(kimg), "--checkpoint.every-kimg", str(kimg / 2)),
        *("--resilience.audit-every-steps", "10", "--evaluation.every-kimg", "0", "--telemetry.progress", "off"),
        *("--run.device", place.device.type, *place.network),
    )
    digests = {}
    for name in ("undisturbed", "killed"):
        run_dir = place.directory / name
        command = [sys.executable, "-m", "gfgw_prod", "train", *options, "--run.dir", str(run_dir)]
        started = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        if name == "killed":
            while process.poll() is None and not list((run_dir / "checkpoints").glob("step-*")):
                time.sleep(0.02)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        code = process.wait(timeout=240)
        yield Row("digits", f"{name}: exit code", code, code == 0)
        yield Row("digits", f"{name}: seconds", time.monotonic() - started)
        digests[name] = digest_of(run_dir)
    same = digests["undisturbed"] == digests["killed"]
    yield Row("digits", "killed and resumed: the same weights", same, same)
    lines = (place.directory / "undisturbed" / "stats.jsonl").read_text(encoding="utf-8").splitlines()
    last = next(record for line in reversed(lines) if "run/audits" in (record := json.loads(line)))
    wrong = last["run/wrong_computations"]
    yield Row("digits", f"wrong computations of {last['run/audits']} audited steps", wrong, wrong == 0)


def speed(place: Place) -> Iterator[Row]:
    """Time, memory and launches of the large configurations."""
    cases: list[tuple[str, dict[str, Any]]] = [
        ("cifar10", {"kept_passes": 2}),
        ("cifar10", {"kept_passes": 8}),
        ("cifar10", {"kept_passes": 8, "compile": True}),
        ("seed_report", {}),
    ]
    for preset, changes in cases[-1:] if place.small else cases:
        name = " ".join([preset, *(f"{key} {value}" for key, value in changes.items())])
        steps = large(place, preset, {"train": changes})
        steps.take(2)
        if place.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(place.device)
        found = steps.take(1 if place.small else max(steps.period(), 5))
        yield Row("speed", f"{name}: s/kimg (first version {FIRST_VERSION})", found)
        for phase, seconds in steps.phases().items():
            yield Row("speed", f"{name}: {phase}, s", seconds)
        if place.device.type == "cuda":
            yield Row("speed", f"{name}: peak memory, GiB", torch.cuda.max_memory_allocated(place.device) / 2**30)
        yield Row("speed", f"{name}: launches of a step", launches(steps))
        steps.close()


def large(place: Place, preset: str, changes: dict[str, Any], **options: Any) -> Steps:
    """Steps of a large configuration, or of a small one like it."""
    config = local_config(preset, changes, place.directory)
    if place.small:
        config = reading.resolve(config.model_dump(), SMALL)
        options["rows"] = 64
    return Steps(config, world_of(place), **options)


def launches(steps: Steps) -> int:
    """Kernels, copies and fills of one step on a GPU; operations on a CPU."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = steps.world.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        steps.take()
    wanted = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    return sum(event.device_type == wanted for event in profiler.events())


def audits(place: Place) -> Iterator[Row]:
    """Steps of the large configurations computed twice: a kernel without a fixed order would differ."""
    for preset in ["cifar10"] if place.small else ["cifar10", "seed_report"]:
        steps = large(place, preset, {}, audit_every=1)
        steps.take(2)
        yield Row("audits", f"{preset}: wrong of {steps.checked.audits}", steps.checked.wrong, steps.checked.wrong == 0)
        steps.close()


def ranks(place: Place) -> Iterator[Row]:
    """Two ranks that share the device, over gloo."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "benchmarks.gpu.rank")
    digests = []
    for strategy in ("ddp", "fsdp"):
        run_dir = place.directory / strategy
        command = (
            *(sys.executable, *launcher, "train", "--config", "digits", "--run.dir", str(run_dir)),
            *("--run.device", place.device.type, "--train.total-kimg", "0.512", "--distributed.strategy", strategy),
            *("--evaluation.every-kimg", "0", "--telemetry.progress", "off", *place.network),
        )
        quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, timeout=180, check=False).returncode
        yield Row("ranks", f"{strategy}: exit code", code, code == 0)
        if code == 0:
            digests.append(digest_of(run_dir))
    if len(digests) == 2:
        yield Row("ranks", "ddp and fsdp: the same weights", digests[0] == digests[1], digests[0] == digests[1])


def solver(place: Place) -> Iterator[Row]:
    """A coupling of clustered features, as the transport benchmark has them."""
    n, total, d = (32, 500, 48) if place.small else (256, 50_000, 384)
    world_of(place)
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(60, d, generator=draw)

    def rows(count: int) -> torch.Tensor:
        own = centres[torch.randint(60, (count,), generator=draw)] + 0.7 * torch.randn(count, d, generator=draw)
        return normalize(own, dim=1).to(place.device)

    x, y = rows(n), rows(total)
    for fixed, name in ((False, "adaptive"), (True, "5 x 50")):
        counts = {"fixed_iterations": True, "max_outer_iterations": 5, "max_inner_iterations": 50} if fixed else {}
        times = []
        for _ in range(2 if place.small else 5):
            synchronise(place.device)
            started = time.perf_counter()
            fused_gromov_wasserstein(x, y, structure_weight=0.125, epsilon=0.05, tolerance=1e-3, **counts).argmax()
            synchronise(place.device)
            times.append(1000 * (time.perf_counter() - started))
        yield Row("solver", f"{n} x {total:,}, {name}: ms", min(times))


def saving(place: Place) -> Iterator[Row]:
    """How long the copy of the state holds up training."""
    steps = large(place, "cifar10", {})
    state, stage = training_state(steps.training, guard={}), Stage(steps.world, CONSTANT)
    locked = stage.preallocate(state)
    yield Row("saving", "memory could be page-locked", locked, locked)
    times = []
    for _ in range(3):
        synchronise(place.device)
        started = time.perf_counter()
        stage.copy(state)
        times.append(1000 * (time.perf_counter() - started))
    size = sum(tensor.nbytes for tensor in state.values()) / 1e6
    yield Row("saving", f"copy of {size:,.0f} MB: ms", min(times))
    steps.close()


def tf32(place: Place) -> Iterator[Row]:
    """The Fréchet distance of two sets of random images by a random network, with TF32 on and off."""
    from torchvision.models import inception_v3

    world_of(place)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = inception_v3(weights=None, aux_logits=False, init_weights=False).to(place.device)  # norms by batch
    network.fc = network.dropout = torch.nn.Identity()
    side, count = (75, 16) if place.small else (299, 512)
    found = {}
    for on in (False, True):
        set_tf32(on)
        moments = []
        for seed in range(2):
            draw, collected = torch.Generator().manual_seed(seed), None
            for _ in range(0, count, 16):
                images = torch.rand(16, 3, side, side, generator=draw).to(place.device) * (0.5 + 0.5 * seed)
                with torch.no_grad():
                    features = network(images)
                collected = collected or Moments(features.shape[1], place.device)
                collected.add(features)
            moments.append(collected)
        found[on] = frechet_distance(*moments)
    set_tf32(False)
    yield Row("tf32", "Fréchet distance without", found[False])
    yield Row("tf32", "relative difference with", abs(found[True] - found[False]) / found[False])


PARTS: dict[str, Part] = {
    part.__name__: part for part in (versions, variants, digits, audits, speed, solver, saving, ranks, replaced, tf32)
}
