"""A pretended GPU: its tensors say ``cuda:0``, and a CPU computes them. Needs neither a driver nor a compiler.

A ``GpuTensor`` wraps the tensor that holds its numbers, and is below autograd and autocast, as torch's fake tensors
are. C++ is told that it is on the CPU, since device guards would ask the driver. ``PretendedGpu`` is the mode in which
tensors are created on the device and copied to it. It raises where a GPU would, and counts

- what has the host wait for the device, by the place in the package and the reason;
- launches: operations on the device that are no views, and multi-tensor ones as often as CUDA launches them. An
  operation counts once, also where CUDA takes several kernels, as for a convolution with a bias;
- bytes of the device's tensors, now and at most.

Without ``computes`` tensors have shapes and no numbers, so that a step of a large network takes seconds. What the host
then reads from the device is zero.
"""

from __future__ import annotations

import collections
import sys
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

import gfgw_prod

from .known_results import KnownResults, leaves_of, mapped

PACKAGE = f"{Path(gfgw_prod.__file__).parent}/"
CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")

# Operations that CUDA computes in no fixed order; torch raises for them.
NOT_DETERMINISTIC = (
    *("avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "max_pool3d_with_indices_backward"),
    *("adaptive_max_pool2d_backward", "max_unpool2d", "upsample_linear1d_backward", "upsample_bilinear2d_backward"),
    *("upsample_bicubic2d_backward", "_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward"),
    *("upsample_trilinear3d_backward", "reflection_pad2d_backward", "nll_loss2d_forward", "_ctc_loss_backward"),
    *("put_", "histc", "kthvalue", "grid_sampler_2d_backward", "median.dim", "_cdist_backward", "cummax"),
)
# Operations that read numbers on the device, to return them or to know the size of their result.
READS = ("_local_scalar_dense", "nonzero", "_unique", "unique", "masked_select", "equal", "is_nonzero", "bincount")
INDEXES = ("index.", "index_put", "_index_put_impl_", "_unsafe_index")
MAY_MIX = ("copy_", "_to_copy", "set_", *INDEXES)  # take tensors of both devices
# Besides views, what has nothing to compute.
FREE = (
    *("empty", "new_empty", "detach", "lift_fresh", "_unsafe_view", "_reshape_alias", "set_", "resize_", "alias"),
    "_local_scalar_dense",
)
# Tensors in one launch of a multi-tensor operation by the number of its lists, and blocks of elements in it
# (aten/src/ATen/native/cuda/MultiTensorApply.cuh).
TENSORS_PER_LAUNCH = (110, 64, 48, 36, 30)
BLOCKS_PER_LAUNCH, ELEMENTS_PER_BLOCK = 320, 65536
CAT_PER_LAUNCH = 128


class DeviceError(RuntimeError):
    """What torch raises on a GPU: tensors of several devices, or an operation without a fixed order."""


@dataclass
class Counts:
    """What a pretended GPU has done so far."""

    waits: collections.Counter[str] = field(default_factory=collections.Counter)  # by place and reason
    launches: collections.Counter[str] = field(default_factory=collections.Counter)  # by operation

    def copy(self) -> Counts:
        return Counts(self.waits.copy(), self.launches.copy())

    def since(self, before: Counts) -> Counts:
        return Counts(self.waits - before.waits, self.launches - before.launches)


class GpuTensor(Tensor):
    """A tensor on the pretended GPU ``gpu``, whose numbers are those of ``held``."""

    held: Tensor
    gpu: PretendedGpu

    @staticmethod
    def __new__(cls, held: Tensor, gpu: PretendedGpu) -> GpuTensor:
        shadow = torch.empty_strided(held.shape, held.stride(), dtype=held.dtype, device="meta")
        if offset := held.storage_offset():  # C++ makes views of views by it
            storage = torch.UntypedStorage(held.untyped_storage().nbytes(), device="meta")
            shadow.set_(storage, offset, held.shape, held.stride())
        made = Tensor._make_subclass(cls, shadow, False, dispatch_device=True, device_for_backend_keys=CPU)
        made.held, made.gpu = held, gpu
        return made

    @property
    def device(self) -> torch.device:
        return CUDA

    is_cuda, is_cpu, is_meta = (property(lambda self, answer=answer: answer) for answer in (True, False, False))

    def __repr__(self) -> str:  # type: ignore[override]
        return f"GpuTensor({self.held!r})"

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def tolist(self) -> Any:
        self.gpu.wait("read")
        return self.gpu.on_host(self).tolist()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.backward:  # what it computes again comes here too
            # Not by ``torch.autograd.backward``, which since torch 2.15 comes here itself.
            given = torch.ones_like(args[0]) if (gradient := kwargs.get("gradient")) is None else gradient
            kept, created = (bool(kwargs.get(name)) for name in ("retain_graph", "create_graph"))
            how = {"allow_unreachable": True, "accumulate_grad": True}
            return _engine_run_backward((args[0],), (given,), kept, created, (), **how)
        with torch._C.DisableTorchFunctionSubclass():
            if func is Tensor.cpu:
                return _moved(args[0], "cpu")
            if func is Tensor.to:
                return _moved(*args, **kwargs)
            if func is F.dropout and args[0].numel() and 0 < kwargs.get("p", 0.5) < 1 and kwargs.get("training", True):
                return torch.native_dropout(args[0], kwargs.get("p", 0.5), True)[0]  # mask and product at once
            if func is F.group_norm:
                args = args[0].contiguous(), *args[1:]  # there is no kernel for channels last
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu = next(leaf.gpu for leaf in leaves_of((args, kwargs or {})) if isinstance(leaf, GpuTensor))
        return gpu.run(func, args, kwargs or {})


def _moved(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``Tensor.to``, which C++ would decide by what it knows of devices."""
    if isinstance(args[0], GpuTensor):
        device, dtype, non_blocking = CUDA, args[0].dtype, False
    else:
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
    if device is not None and device.type != tensor.device.type:
        to_host = isinstance(tensor, GpuTensor)
        tensor = _ToHost.apply(tensor, non_blocking) if to_host else tensor.to(device, non_blocking=non_blocking)
    return tensor if dtype is None else tensor.to(dtype)


class _ToHost(torch.autograd.Function):
    """A copy to the host, differentiable as torch's is."""

    @staticmethod
    def forward(ctx: Any, tensor: GpuTensor, non_blocking: bool) -> Tensor:
        if not non_blocking:
            tensor.gpu.wait("copy to the host")
        return tensor.gpu.on_host(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient.to(CUDA), None


class PretendedGpu(TorchDispatchMode):
    """One pretended GPU; active within its ``with`` statement, in this thread."""

    def __init__(self, *, computes: bool = True):
        super().__init__()
        self.computes, self.counts = computes, Counts()
        self.bytes = self.most_bytes = 0
        self.gloo: set[str] = set()  # names of process groups for tensors on the host; all others are NCCL's
        self._storages: dict[int, Any] = {}
        self._results = KnownResults()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def wait(self, why: str) -> None:
        """Count that the host waits for the device."""
        self.counts.waits[f"{_place()} {why}"] += 1

    def on_host(self, tensor: GpuTensor) -> Tensor:
        """A copy on the host."""
        held = tensor.detach().held  # type: ignore[attr-defined]
        return held.clone() if self.computes else torch.zeros(held.shape, dtype=held.dtype)

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run one operation of torch, on whatever device."""
        if func is torch.ops.prim.device.default:
            return CPU
        name = str(func).removeprefix("aten.")
        leaves = [*leaves_of((args, kwargs))]
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        ours = [tensor for tensor in tensors if isinstance(tensor, GpuTensor)]
        if name.startswith("c10d."):
            return self._collective(func, name, args, kwargs, tensors, leaves)
        device = kwargs.get("device")
        to_device = device is not None and torch.device(device).type == "cuda"
        if name.startswith("_foreach_copy_") and 0 < len(ours) < len(tensors):  # one by one between devices
            for target, source in zip(args[0], args[1], strict=True):
                self.run(torch.ops.aten.copy_.default, (target, source), {})
            return None
        if to_device and isinstance(args[0], DTensor):  # this rank's part of another one like it
            own = self.run(func, (args[0]._local_tensor, *args[1:]), kwargs)
            return DTensor(own, args[0]._spec, requires_grad=False)
        if not ours and not to_device:
            return _on_cpu(func, name, args, kwargs)
        if device is not None:
            # C++ may have asked for the CPU, where it thinks that the tensor is.
            kwargs = {**kwargs, "device": CPU if self.computes else torch.device("meta")}
            kwargs.pop("pin_memory", None)
        self._refuse_mixture(name, args, tensors, ours)
        if torch.are_deterministic_algorithms_enabled() and name.startswith(NOT_DETERMINISTIC):
            raise DeviceError(f"{name} does not have a deterministic implementation, at {_place()}")
        self._count_waits(name, args, kwargs, ours, device)
        if name.startswith("copy_"):
            return self._copy(args[0], args[1])
        if name.startswith("_local_scalar_dense") and not self.computes:
            return torch.zeros((), dtype=args[0].dtype).item()
        self._count_launches(func, name, args, tensors)
        held = mapped(self._held, args), mapped(self._held, kwargs)
        result = func(*held[0], **held[1]) if self.computes or name.startswith(FREE) else self._results.of(func, *held)
        return self._wrapped(func, name, args, kwargs, ours, result)

    def _held(self, leaf: Any) -> Any:
        if isinstance(leaf, GpuTensor):
            return leaf.held
        return leaf.to("meta") if isinstance(leaf, Tensor) and not self.computes else leaf

    def _wrapped(self, func: Any, name: str, args: Any, kwargs: Any, ours: list[GpuTensor], result: Any) -> Any:
        """The results as tensors on the device; the argument itself where an operation works in place."""
        if name.startswith("set_"):
            return args[0]
        before = {id(tensor.held): tensor for tensor in ours}

        def wrap(found: Any) -> Any:
            if not isinstance(found, Tensor):
                return found
            if (same := before.get(id(found))) is None:
                return self.tensor(found)
            if same.shape != found.shape:  # squeeze_ and its like
                with torch._C._DisableTorchDispatch():
                    func(*args, **kwargs)
            return same

        return mapped(wrap, result)

    def tensor(self, held: Tensor) -> GpuTensor:
        """A tensor on the device, of whose memory this GPU keeps count."""
        storage = held.untyped_storage()
        if (key := storage._cdata) not in self._storages:
            size = storage.nbytes()
            self.bytes += size
            self.most_bytes = max(self.most_bytes, self.bytes)
            self._storages[key] = weakref.ref(storage, lambda _: self._freed(key, size))
        return GpuTensor(held, self)

    def _freed(self, key: int, size: int) -> None:
        del self._storages[key]
        self.bytes -= size

    def _copy(self, target: Tensor, source: Tensor) -> Tensor:
        if self.computes:
            self._held(target).copy_(self._held(source))
        elif not isinstance(target, GpuTensor):
            target.zero_()
        if isinstance(target, GpuTensor):
            self.counts.launches["copy_"] += 1
        return target

    def _refuse_mixture(self, name: str, args: Any, tensors: list[Tensor], ours: list[GpuTensor]) -> None:
        """Raise where tensors are on several devices; CPU tensors without dimensions count as numbers."""
        others = [tensor for tensor in tensors if not isinstance(tensor, GpuTensor) and tensor.dim() > 0]
        if name.startswith(INDEXES):  # tensors on the device take indices from the host, and nothing else
            chosen = [each for each in args[1] if isinstance(each, Tensor)]
            others = [each for each in others if not any(each is index for index in chosen)]
            others = others if isinstance(args[0], GpuTensor) else tensors
        elif name.startswith(MAY_MIX):
            return
        if ours and others:
            problem = "Expected all tensors to be on the same device, but found cuda:0 and cpu"
            raise DeviceError(f"{name}: {problem}, at {_place()}")

    def _count_waits(self, name: str, args: Any, kwargs: Any, ours: list[GpuTensor], device: Any) -> None:
        if name.startswith(READS):
            self.wait("read")
        elif name.startswith(INDEXES):
            chosen = [each for each in args[1] if isinstance(each, Tensor)]
            if any(each.dtype is torch.bool for each in chosen):
                self.wait("read of a mask")
            elif not all(isinstance(each, GpuTensor) for each in chosen):
                self.wait("copy of indices")
        elif name.startswith("_to_copy") and device is not None and not ours:
            self._count_copy(args[0], "copy to the device", kwargs.get("non_blocking", False))
        elif name.startswith("copy_") and isinstance(args[1], GpuTensor) != isinstance(args[0], GpuTensor):
            on_host, way = (args[1], "device") if isinstance(args[0], GpuTensor) else (args[0], "host")
            self._count_copy(on_host, f"copy to the {way}", args[2] if len(args) > 2 else kwargs.get("non_blocking"))

    def _count_copy(self, on_host: Tensor, why: str, non_blocking: bool) -> None:
        """A copy is asynchronous only from and to page-locked memory; one number travels with the launch."""
        if not (non_blocking and on_host.is_pinned()):
            self.wait(why)

    def _count_launches(self, func: Any, name: str, args: Any, tensors: list[Tensor]) -> None:
        if func.is_view or name.startswith(FREE):
            return
        if name.startswith(("_foreach", "_fused")):
            lists = [each for each in args if isinstance(each, (list, tuple)) and each and isinstance(each[0], Tensor)]
            self.counts.launches[name] += _multi_tensor_launches(lists[0], len(lists))
        elif name.startswith("cat."):
            self.counts.launches[name] += -(-len(tensors) // CAT_PER_LAUNCH)
        else:
            self.counts.launches[name] += 1

    def _collective(
        self, func: Any, name: str, args: Any, kwargs: Any, tensors: list[Tensor], leaves: list[Any]
    ) -> Any:
        """Run a collective over gloo, which stands in for NCCL where all tensors are on the device."""
        group = next(leaf for leaf in leaves if isinstance(leaf, torch.ScriptObject))
        over_gloo = torch.distributed.ProcessGroup.unbox(group).group_name in self.gloo
        for tensor in tensors:
            if isinstance(tensor, GpuTensor) == over_gloo and not name.startswith("c10d.barrier"):
                backend = "gloo" if over_gloo else "NCCL"
                raise DeviceError(f"{name}: a tensor on {tensor.device} over {backend}, at {_place()}")
        if not over_gloo:
            self.counts.launches[name] += 1
        result = func(*mapped(self._held, args), **mapped(self._held, kwargs))
        before = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, GpuTensor)}
        return mapped(lambda leaf: before.get(id(leaf), leaf) if isinstance(leaf, Tensor) else leaf, result)


def _on_cpu(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on the host alone; memory is page-locked in name only."""
    pinned = kwargs.pop("pin_memory", False)
    result = func(*args, **kwargs)
    if pinned:
        mark_pinned(result)
    return result


def mark_pinned(tensor: Tensor) -> None:
    """From now on the tensor's memory counts as page-locked."""
    tensor.untyped_storage().is_page_locked = True  # type: ignore[attr-defined]


def is_marked_pinned(tensor: Tensor) -> bool:
    """Whether the tensor's memory counts as page-locked."""
    return not isinstance(tensor, GpuTensor) and getattr(tensor.untyped_storage(), "is_page_locked", False)


def _multi_tensor_launches(tensors: list[Tensor], lists: int) -> int:
    """Launches of a multi-tensor operation on ``lists`` lists of tensors of these sizes."""
    most = TENSORS_PER_LAUNCH[min(lists, len(TENSORS_PER_LAUNCH)) - 1]
    blocks = sum(-(-tensor.numel() // ELEMENTS_PER_BLOCK) for tensor in tensors)
    return max(-(-len(tensors) // most), -(-blocks // BLOCKS_PER_LAUNCH))


def _place() -> str:
    """The function of the package that is under way."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE):
            return f"{file.removeprefix(PACKAGE)}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"
