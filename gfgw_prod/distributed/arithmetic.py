"""torch's settings of this process that are part of the arithmetic."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.utils.deterministic

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"

_lock = threading.Lock()
_users: list[Callable[[], None]] = []  # of ``arithmetic_restored``, in all threads; the first one's is kept


def set_arithmetic(device: torch.device, threads: int) -> None:
    """Make torch deterministic, with this number of intra-op CPU threads, whatever a notebook has set before."""
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    if torch.get_default_device().type != "cpu":
        torch.set_default_device("cpu")
    torch.use_deterministic_algorithms(True)
    # Filling memory that is always written before it is read only costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device.type == "cuda":
        os.environ[CUBLAS] = ":4096:8"  # cuBLAS reads it at its first call
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = False  # it picks kernels by measured time, so bits would vary
        set_tf32(False)  # torch's default rounds the inputs of convolutions


def set_tf32(on: bool) -> None:
    """Whether GPUs round the inputs of float32 matrix products and convolutions to TF32, with 10 bits of mantissa."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on


@contextmanager
def tf32() -> Iterator[None]:
    """Context in which products of float32 are rounded to TF32."""
    set_tf32(True)
    try:
        yield
    finally:
        set_tf32(False)


@contextmanager
def arithmetic_restored() -> Iterator[None]:
    """Restore at the end what ``set_arithmetic`` changes.

    Several threads may be within: a run that trains, and one that samples. The last one restores what is the
    process's; the number of threads and the default device are each thread's own.
    """
    threads, default = torch.get_num_threads(), torch.get_default_device()
    gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    with _lock:
        _users.append(_users[0] if _users else _restorer())
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if default.type != "cpu":
            torch.set_default_device(default)
        if gpu is not None:
            torch.cuda.set_device(gpu)
        with _lock:
            restore = _users.pop()
            if not _users:
                restore()


def _restorer() -> Callable[[], None]:
    mode, benchmark = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    dtype = torch.get_default_dtype()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    cublas = os.environ.get(CUBLAS)
    products, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    def restore() -> None:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = products, convolutions
        torch.set_deterministic_debug_mode(mode)
        torch.set_default_dtype(dtype)
        torch.backends.cudnn.benchmark = benchmark
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        if cublas is None:
            os.environ.pop(CUBLAS, None)
        else:
            os.environ[CUBLAS] = cublas

    return restore
