"""Benchmark the solver: against POT, with growing banks, and with persistent duals; ratios within one run."""

from __future__ import annotations

import ctypes
import math
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import ot
import ot.batch
import torch
from torch import Tensor
from torch.nn.functional import normalize

from gfgw_prod.data.sources import Table, load_table
from gfgw_prod.distributed.row_table import rows_per_block
from gfgw_prod.distributed.world import World
from gfgw_prod.features.bank import FeatureBank
from gfgw_prod.features.extractors import PixelFeatures
from gfgw_prod.settings.config import DataSettings, TransportSettings
from gfgw_prod.transport import fused_gromov_wasserstein
from gfgw_prod.transport.columns import Columns
from gfgw_prod.transport.coupling import Options
from gfgw_prod.transport.fgw import solve
from gfgw_prod.transport.matching import Matcher

SLOTS, DIM, LAMBDA, EPSILON, TOLERANCE = 256, 384, 0.125, 0.05, 1e-4
ROUNDS, REPEATS = 5, 9
# L1 marginal errors at which POT and our solver stop: those at which both objectives agree to 1e-5.
STOPS = {1e-4: 3e-5, 1e-6: 1e-6}
ALONE = World(0, 1, torch.device("cpu"))


def features(rows: int, seed: int, classes: int = 10, noise: float = 0.8) -> Tensor:
    """Unit rows of overlapping classes; the norm of the noise is a share of the norm of the centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, DIM, generator=torch.Generator().manual_seed(99))
    chosen = torch.randint(classes, (rows,), generator=generator)
    return normalize(centres[chosen] + noise * torch.randn(rows, DIM, generator=generator), dim=1)


def seconds(action: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Median wall time and the last result."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = action()
        times.append(time.perf_counter() - started)
    return statistics.median(times), result


def dense_objective(x: Tensor, y: Tensor, T: Tensor) -> float:
    """The objective of a coupling matrix ``T (n, N)`` from distance matrices, in float64."""
    x, y, T = x.double(), y.double(), T.double()
    p, q = T.sum(dim=1), T.sum(dim=0)
    cost, cost_x, cost_y = 1 - x @ y.T, 1 - x @ x.T, 1 - y @ y.T
    structure = p @ cost_x.square() @ p + q @ cost_y.square() @ q - 2 * (cost_x @ T @ cost_y * T).sum()
    entropy = -torch.special.xlogy(T, T).sum()
    return float((1 - LAMBDA) * (cost * T).sum() + LAMBDA * structure - EPSILON * entropy)


def against_pot(theirs: float, tolerance: float) -> None:
    """Our solver and POT's on one problem, to one marginal error; interleaved, so that noise affects all equally."""
    x, y = features(SLOTS, 0), features(2048, 1)
    costs = [1 - x @ y.T, 1 - x @ x.T, 1 - y @ y.T, torch.full((SLOTS,), 1 / SLOTS), torch.full((2048,), 1 / 2048)]
    stop = theirs / math.sqrt(SLOTS)  # POT stops on L2 errors

    def ours(linearisations: int = 50) -> Tensor:
        options: dict[str, Any] = {"tolerance": tolerance, "max_outer_iterations": linearisations}
        return fused_gromov_wasserstein(x, y, structure_weight=LAMBDA, epsilon=EPSILON, **options).dense()

    def projected_gradient(given: list[Any]) -> Any:
        options = {"max_iter": 50, "tol": stop, "stopThr": stop, "numItermax": 5000}
        return ot.gromov.entropic_fused_gromov_wasserstein(
            *given, loss_fun="square_loss", epsilon=EPSILON, alpha=LAMBDA, **options
        )

    def batched() -> Tensor:
        cost, cost_x, cost_y, p, q = (tensor[None] for tensor in costs)
        options = {"max_iter": 1, "max_iter_inner": 5000, "tol_inner": stop, "symmetric": True, "grad": "detach"}
        found = ot.batch.solve_gromov_batch(cost_x, cost_y, EPSILON, p, q, M=cost, alpha=LAMBDA, **options)
        return found.plan[0]

    solvers: dict[str, Callable[[], Any]] = {"ours, float32": ours}
    for backend in ("torch", "numpy"):
        for dtype in (torch.float32, torch.float64):
            given: list[Any] = [tensor.to(dtype) for tensor in costs]
            given = [tensor.numpy() for tensor in given] if backend == "numpy" else given
            solvers[f"POT PGD, {backend}, {str(dtype).removeprefix('torch.')}"] = partial(projected_gradient, given)
    # A proximal method for the problem without entropy; only its first iteration equals one of ours, the first.
    ours_once, theirs_once = "ours, one linearisation", "POT batched, one iteration"
    solvers |= {ours_once: partial(ours, 1), theirs_once: batched}

    times: dict[str, list[float]] = {name: [] for name in solvers}
    plans: dict[str, Tensor] = {}
    for _ in range(ROUNDS):
        for name, solver in solvers.items():
            solver()  # warm up after another solver
            took, found = seconds(solver, REPEATS if name.startswith("ours") else 1)
            times[name].append(took)
            plans[name] = torch.as_tensor(np.asarray(found))
    print(
        f"n={SLOTS} N=2048 d={DIM} ε={EPSILON} λ={LAMBDA}, {torch.get_num_threads()} threads, stopped at {theirs:.0e}"
    )
    print(f"{'':<30}{'seconds':>9}{'times ours':>12}{'objective':>12}{'row error':>11}")
    for name, T in plans.items():
        took = statistics.median(times[name])
        reference = times[ours_once if name == theirs_once else "ours, float32"]
        ratio = statistics.median(a / b for a, b in zip(times[name], reference, strict=True))
        error = float((T.double().sum(dim=1) - 1 / SLOTS).abs().sum())
        print(f"{name:<30}{took:>9.4f}{ratio:>12.1f}{dense_objective(x, y, T):>12.6f}{error:>11.1e}", flush=True)


def against_products() -> None:
    """Our solver on 60 distant classes, against the matrix products of its linearisations; interleaved."""
    x, y = features(SLOTS, 0, 60, 0.7), features(2048, 1, 60, 0.7)
    state, kernel, logits = torch.randn(DIM, DIM), torch.rand(SLOTS, 2048), torch.empty(SLOTS, 2048)

    def products(linearisations: int) -> None:
        for _ in range(linearisations):
            torch.mm(x @ state, y.T, out=logits)
            x.T @ (kernel @ y)

    print(f"{'tolerance':>9}{'ms':>7}{'products':>10}{'ratio':>7}{'outer':>7}{'inner':>7}{'Hessians':>10}")
    for tolerance in (1e-4, 1e-6):
        solver = partial(fused_gromov_wasserstein, x, y, structure_weight=LAMBDA, epsilon=EPSILON, tolerance=tolerance)
        status, times = solver().status, []
        for _ in range(ROUNDS * REPEATS):
            times.append((seconds(solver, 1)[0], seconds(partial(products, status.outer_iterations), 1)[0]))
        ours, theirs = (1e3 * statistics.median(each) for each in zip(*times, strict=True))
        ratio = statistics.median(a / b for a, b in times)
        counts = f"{status.outer_iterations:>7}{status.inner_iterations:>7}{status.hessians:>10}"
        print(f"{tolerance:>9.0e}{ours:>7.1f}{theirs:>10.1f}{ratio:>7.2f}{counts}", flush=True)


def resident(line: str) -> float:
    """A memory entry of ``/proc/self/status``, in MB."""
    with open("/proc/self/status") as status:
        return float(next(entry for entry in status if entry.startswith(line)).split()[1]) / 1024


def full_scope(size: int) -> tuple[float, float, int, int]:
    """Seconds, MB beyond the bank, and iterations of a solve against ``size`` columns. Runs in its own process."""
    torch.set_num_threads(2)
    x, p = features(SLOTS, 0), torch.full((SLOTS,), 1 / SLOTS)
    columns = Columns(features(size, 1), torch.full((size,), 1 / size), None, rows_per_block(size), 0, ALONE)
    options = Options(LAMBDA, EPSILON, tolerance=TOLERANCE)
    solve(x, p, Columns(x, p, None, SLOTS, 0, ALONE), options)  # lets libraries allocate first
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # otherwise memory freed by building the bank would hide allocations
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # resets the peak, VmHWM
    before = resident("VmRSS")
    status = solve(x, p, columns, options).status
    extra = resident("VmHWM") - before
    took, _ = seconds(lambda: solve(x, p, columns, options), 5)
    return took, extra, status.outer_iterations, status.inner_iterations


def growth() -> None:
    """Time and memory in full scope, from 2,048 to 200,000 columns."""
    sizes = (2048, 8192, 50_000, 200_000)
    print(f"{'N':>8}{'seconds':>9}{'extra MB':>10}{'outer':>7}{'inner':>7}")
    found = []
    for size in sizes:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
            found.append(executor.submit(full_scope, size).result())
        took, extra, outer, inner = found[-1]
        print(f"{size:>8,}{took:>9.3f}{extra:>10.1f}{outer:>7}{inner:>7}", flush=True)
    for name, values in (("time", [each[0] for each in found]), ("memory", [each[1] for each in found])):
        print(f"log-log slope of {name}: {np.polyfit(np.log(sizes), np.log(values), 1)[0]:.2f}")


def generated(table: Table, step: int, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Features and classes of a fixed generator, which makes noisy digits and favours some of them."""
    generator = torch.Generator().manual_seed(step)
    rows = torch.multinomial(weights, 128, generator=generator)
    images = table.rows(rows)
    noisy = 0.7 * images + 0.3 * torch.randn(images.shape, generator=generator)
    return normalize(noisy.flatten(1), dim=1), table.labels[rows]


def duals() -> None:
    """Digits with a fixed generator: use of the bank over the last two of five epochs, iterations and time."""
    table = load_table(DataSettings())
    weights = torch.rand(len(table), generator=torch.Generator().manual_seed(0)) ** 3
    bank = FeatureBank(len(table), 64, ALONE)
    bank.encode(table, PixelFeatures(table.image_shape), 128, on_block=lambda rows: None)
    print(f"{'ε':>6}  {'dual':<12}{'unevenness':>11}{'rows used':>11}{'inner/step':>12}{'ms/step':>9}")
    for epsilon in (0.02, 0.005):
        for dual in ("fresh", "persistent"):
            settings = TransportSettings(
                scope="full", dual=dual, epsilon=epsilon, epsilon_end=epsilon, structure_weight=0.2, tolerance=1e-2
            )
            matcher = Matcher(
                settings,
                bank,
                bank_labels=table.labels,
                num_classes=table.num_classes,
                seed=0,
            )
            steps = 5 * len(table) // 128
            counts, inner, started = torch.zeros(len(table)), 0, time.perf_counter()
            for step in range(steps):
                x, labels = generated(table, step, weights)
                nothing = torch.zeros(128)
                match = matcher.match(
                    x, nothing.long(), labels, nothing, step=step, epsilon=epsilon, structure_weight=0.2
                )
                matcher.accept(match, images=(step + 1) * 128)
                inner += int(match.values()["transport/inner_iterations"])
                if step >= steps * 3 // 5:
                    counts += torch.bincount(match.rows, minlength=len(table))
            took = (time.perf_counter() - started) / steps
            uneven = float((counts / counts.sum() - 1 / len(table)).abs().sum())
            used = float((counts > 0).float().mean())
            print(
                f"{epsilon:>6}  {dual:<12}{uneven:>11.3f}{used:>11.1%}{inner / steps:>12.1f}{1e3 * took:>9.1f}",
                flush=True,
            )


def main() -> None:
    torch.set_num_threads(2)
    warnings.simplefilter("ignore")
    for theirs, ours in STOPS.items():
        against_pot(theirs, ours)
        print()
    against_products()
    print()
    growth()
    print()
    duals()
