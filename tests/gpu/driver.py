"""``torch.cuda`` without a driver: its functions answer for a pretended GPU.

Streams and events have no work to order, as everything is computed at once. An event keeps what the GPU had counted
when it was recorded. ``torch.autocast`` for CUDA is that of the CPU, and in float32 also for what CUDA computes so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from gfgw_prod.distributed import checksums

from .pretended import CUDA, Counts, GpuTensor, PretendedGpu, is_marked_pinned, mark_pinned

NAME = "NVIDIA Pretended"
MEMORY = 80 << 30
# Of those that autocast runs in float32 on CUDA, and not on the CPU, what this project's networks use
# (aten/src/ATen/autocast_mode.h).
IN_FLOAT32 = (
    *("group_norm", "layer_norm", "native_layer_norm", "softmax.int", "log_softmax.int", "norm.ScalarOpt_dim"),
    *("exp", "log", "pow.Tensor_Scalar", "pow.Scalar", "reciprocal", "rsqrt", "cumsum", "linalg_vector_norm"),
    *("cosine_similarity", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d"),
    *("upsample_nearest2d.vec", "upsample_bilinear2d.vec", "upsample_bicubic2d.vec"),
)
HALVES = (torch.bfloat16, torch.float16)


@contextmanager
def pretended_gpu(*, computes: bool = True, visible: int = 1) -> Iterator[PretendedGpu]:
    """Within, this process sees ``visible`` GPUs, and computes on one of them."""
    gpu = PretendedGpu(computes=computes)
    checksums._all_odd_numbers.cache_clear()  # tensors of another one
    with pytest.MonkeyPatch.context() as patch:
        _replace_cuda(patch, gpu, visible)
        library = _float32_under_autocast()
        overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # ``.data`` takes no tensor of another class
        try:
            with gpu:
                yield gpu
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
            library._destroy()


class Event:
    """An event in a stream, which has passed."""

    gpu: PretendedGpu

    def __init__(self, *_: Any, **__: Any):
        self.counts = Counts()

    def record(self, *_: Any) -> None:
        self.counts = self.gpu.counts.copy()

    def elapsed_time(self, other: Event) -> float:
        return 1.0  # milliseconds

    def synchronize(self) -> None:
        pass

    def wait(self, *_: Any) -> None:
        pass

    def query(self) -> bool:
        return True


class Stream:
    """A stream of the device."""

    device = CUDA
    stream_id, device_index, device_type = 0, 0, 1

    def __init__(self, *_: Any, **__: Any):
        pass

    def wait_stream(self, other: Stream) -> None:
        pass

    def wait_event(self, event: Event) -> None:
        pass

    def record_event(self, event: Any = None) -> Any:
        event = event or torch.cuda.Event()
        event.record()
        return event

    def synchronize(self) -> None:
        pass


class Runtime:
    """``torch.cuda.cudart()``: what is registered here counts as page-locked."""

    registered: ClassVar[dict[int, int]] = {}  # bytes by address, of this process

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802
        self.registered[address] = size
        return 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        del self.registered[address]
        return 0


def _replace_cuda(patch: pytest.MonkeyPatch, gpu: PretendedGpu, visible: int) -> None:
    runtime = Runtime()
    event = type("Event", (Event,), {"gpu": gpu})
    properties = SimpleNamespace(name=NAME, total_memory=MEMORY, major=8, minor=0, multi_processor_count=108)

    def is_pinned(tensor: Tensor, device: Any = None) -> bool:
        if isinstance(tensor, GpuTensor):
            return False
        begin = tensor.untyped_storage().data_ptr()
        end = begin + tensor.untyped_storage().nbytes()
        registered = any(at <= begin and end <= at + size for at, size in runtime.registered.items())
        return registered or is_marked_pinned(tensor)

    def pin_memory(tensor: Tensor, device: Any = None) -> Tensor:
        if isinstance(tensor, GpuTensor):
            raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
        if is_pinned(tensor):
            return tensor
        pinned = tensor.clone()
        mark_pinned(pinned)
        return pinned

    functions: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: visible,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_name": lambda device=None: NAME,
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: (properties.major, properties.minor),
        "is_bf16_supported": lambda *_, **__: True,
        "synchronize": lambda device=None: gpu.wait("synchronisation"),
        # Dropout masks come from the CPU's generator, and torch's own functions save that.
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "memory_allocated": lambda device=None: gpu.bytes,
        "max_memory_allocated": lambda device=None: gpu.most_bytes,
        "reset_peak_memory_stats": lambda device=None: setattr(gpu, "most_bytes", gpu.bytes),
        "mem_get_info": lambda device=None: (MEMORY - gpu.bytes, MEMORY),
        "Event": event,
        "Stream": Stream,
        "current_stream": lambda device=None: Stream(),
        "stream": lambda stream: nullcontext(),
        "cudart": lambda: runtime,
    }
    for name, function in functions.items():
        patch.setattr(torch.cuda, name, function)
    patch.setattr(Tensor, "pin_memory", pin_memory)
    patch.setattr(Tensor, "is_pinned", is_pinned)
    patch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
    patch.setattr(torch, "autocast", _Autocast)
    patch.setattr(torch, "Generator", _Generator)
    patch.setattr(torch, "tensor", partial(_tensor, torch.tensor))


def _tensor(make: Callable[..., Tensor], numbers: Any, *, device: Any = None, **options: Any) -> Tensor:
    made = make(numbers, **options)
    # Without an index C++ would ask the driver for the present device.
    return made if device is None else made.to(CUDA if torch.device(device).type == "cuda" else device)


class _Generator(torch.Generator):
    def __new__(cls, device: Any = "cpu") -> Any:
        return super().__new__(cls, "cpu")


class _Autocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **kwargs: Any):
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


def _float32_under_autocast() -> Any:
    """Have autocast run ``IN_FLOAT32`` in float32, until the library is destroyed."""
    library = torch.library.Library("aten", "IMPL")
    autocast = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

    def kernel_of(operation: Any) -> Any:
        def kernel(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = tree_map_only(Tensor, _widened, (args, kwargs))
            with torch._C._ExcludeDispatchKeyGuard(autocast):
                return operation(*args, **kwargs)

        return kernel

    for name in IN_FLOAT32:
        operation, _, overload = name.partition(".")
        found = getattr(getattr(torch.ops.aten, operation), overload or "default")
        library.impl(name, kernel_of(found), "AutocastCPU")
    return library


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in HALVES else tensor
