"""The pretended GPU raises and counts where a GPU would raise and make the host wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import dropout, group_norm, scaled_dot_product_attention

from gfgw_prod.distributed.transfers import to_device

from .driver import pretended_gpu
from .pretended import CUDA, DeviceError, PretendedGpu


@pytest.fixture
def gpu() -> Iterator[PretendedGpu]:
    with pretended_gpu() as gpu:
        yield gpu


def on_gpu(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(CUDA)


def test_numbers_and_gradients_are_the_cpus(gpu: PretendedGpu) -> None:
    layer = torch.nn.Linear(3, 2)
    x = torch.randn(4, 3)
    layer(x).square().sum().backward()
    expected, layer.weight.grad = layer.weight.grad, None
    moved = layer.to(CUDA)
    moved(x.to(CUDA)).square().sum().backward()
    assert moved.weight.device == CUDA
    assert moved.weight.grad is not None
    assert expected is not None
    assert torch.equal(moved.weight.grad.cpu(), expected)


def test_view_of_a_view_lies_where_the_cpus_does(gpu: PretendedGpu) -> None:
    x = torch.zeros(3, 6, device=CUDA)
    x[:, 2:5].fill_diagonal_(1)
    assert x.nonzero().tolist() == [[0, 2], [1, 3], [2, 4]]


MIXTURES: dict[str, Callable[[], object]] = {
    "sum": lambda: on_gpu(2) + torch.ones(2),
    "product": lambda: torch.ones(2, 2) @ on_gpu(2, 2),
    "in place": lambda: torch.zeros(2).add_(on_gpu(2)),
    "out": lambda: torch.mul(on_gpu(2), 2, out=torch.zeros(2)),
    "indices on the GPU": lambda: torch.ones(3)[torch.zeros(2, dtype=torch.long, device=CUDA)],
    "values on the CPU": lambda: on_gpu(3).index_put_((torch.zeros(1, dtype=torch.long, device=CUDA),), torch.ones(1)),
    "concatenation": lambda: torch.cat([on_gpu(1), torch.ones(1)]),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_tensors_of_two_devices_do_not_mix(gpu: PretendedGpu, name: str) -> None:
    with pytest.raises(DeviceError, match="same device"):
        MIXTURES[name]()


def test_number_on_the_cpu_mixes(gpu: PretendedGpu) -> None:
    assert (on_gpu(2) * torch.tensor(0.0)).sum() == 0


WAITS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x[0].item(),
    "tolist": lambda x: x.tolist(),
    "truth": lambda x: bool(x[0] > 0),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "copy to the host": lambda x: torch.empty(8).copy_(x),
    "copy to the device": lambda x: torch.ones(8).to(CUDA),
    "of unpinned memory": lambda x: torch.ones(8).to(CUDA, non_blocking=True),
    "new tensor": lambda x: torch.tensor([1.0], device=CUDA),
    "mask": lambda x: x[x > 0],
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: x.unique(),
    "indices of the host": lambda x: x[torch.tensor([0, 1])],
    "synchronize": lambda x: torch.cuda.synchronize(),
}


@pytest.mark.parametrize("name", WAITS)
def test_wait_is_counted(gpu: PretendedGpu, name: str) -> None:
    x = on_gpu(8)
    before = gpu.counts.copy()
    WAITS[name](x)
    assert gpu.counts.since(before).waits.total() == 1


NO_WAITS: dict[str, Callable[[Tensor], object]] = {
    "arithmetic": lambda x: (x * 2 + 1).sum().sqrt(),
    "view": lambda x: x.view(2, 4)[0],
    "created there": lambda x: torch.zeros(3, device=CUDA),
    "to where it is": lambda x: x.to(CUDA),
    "from pinned memory": lambda x: torch.ones(8).pin_memory().to(CUDA, non_blocking=True),
    "by the package's function": lambda x: to_device(torch.ones(8), CUDA),
    "to pinned memory": lambda x: torch.empty(8, pin_memory=True).copy_(x, non_blocking=True),
    "indices of the device": lambda x: x[to_device(torch.tensor([0, 1]), CUDA)],
}


@pytest.mark.parametrize("name", NO_WAITS)
def test_nothing_is_counted_where_the_host_goes_on(gpu: PretendedGpu, name: str) -> None:
    x = on_gpu(8)
    before = gpu.counts.copy()
    NO_WAITS[name](x)
    assert not gpu.counts.since(before).waits


def test_launches_are_operations_that_are_no_views(gpu: PretendedGpu) -> None:
    x = on_gpu(8, 8)
    before = gpu.counts.copy()
    (x.T[1:] * 2).sum().reshape(1)
    assert gpu.counts.since(before).launches == {"mul.Tensor": 1, "sum.default": 1}


def test_dropout_is_one_launch_each_way(gpu: PretendedGpu) -> None:
    x = torch.nn.Parameter(on_gpu(64, 64))
    before = gpu.counts.copy()
    dropped = dropout(x, p=0.25)
    dropped.backward(torch.ones_like(dropped))
    assert gpu.counts.since(before).launches == {
        "native_dropout.default": 1,
        "native_dropout_backward.default": 1,
        "ones_like.default": 1,
    }
    kept = (dropped != 0).float()
    assert 0.6 < kept.mean() < 0.9
    assert torch.allclose(dropped.detach(), x.detach() * kept / 0.75)
    assert dropout(x, p=0.25, training=False) is x


def test_group_norm_copies_channels_last(gpu: PretendedGpu) -> None:
    x = on_gpu(2, 4, 8, 8)
    before = gpu.counts.copy()
    assert group_norm(x.contiguous(memory_format=torch.channels_last), 2).is_contiguous()
    assert gpu.counts.since(before).launches == {"clone.default": 2, "native_group_norm.default": 1}


def test_multi_tensor_operations_count_as_cuda_launches_them(gpu: PretendedGpu) -> None:
    before = gpu.counts.copy()
    torch._foreach_add_([torch.zeros(8, device=CUDA) for _ in range(111)], 1)
    torch._foreach_mul_([torch.zeros(321 * 65536, device=CUDA)], 2)
    found = gpu.counts.since(before).launches
    assert found["_foreach_add_.Scalar"] == found["_foreach_mul_.Scalar"] == 2


def test_operation_without_a_fixed_order_is_refused(gpu: PretendedGpu) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(DeviceError, match=r"histc\.default does not have a deterministic implementation"):
            on_gpu(8).histc(4)
    finally:
        torch.use_deterministic_algorithms(False)


def test_autocast_computes_products_in_bf16_and_norms_in_float32(gpu: PretendedGpu) -> None:
    x = on_gpu(2, 4, 4, 4)
    with torch.autocast("cuda", torch.bfloat16):
        product = x.flatten(2) @ x.flatten(2).mT
        norm = group_norm(x.bfloat16(), 2)
    assert (product.dtype, norm.dtype) == (torch.bfloat16, torch.float32)


def test_attention_of_four_dimensions_is_one_launch(gpu: PretendedGpu) -> None:
    before = gpu.counts.copy()
    scaled_dot_product_attention(*(on_gpu(2, 1, 8, 4) for _ in range(3)))
    launches = gpu.counts.since(before).launches
    assert sum(count for name, count in launches.items() if "attention" in name) == 1
    assert "bmm.default" not in launches


def test_memory_is_that_of_living_tensors(gpu: PretendedGpu) -> None:
    kept = torch.zeros(1 << 20, device=CUDA)
    kept + 1
    assert gpu.bytes == 4 << 20
    assert gpu.most_bytes == 8 << 20
    del kept
    assert gpu.bytes == 0


def test_shapes_alone_give_the_same_counts() -> None:
    found = []
    for computes in (True, False):
        with pretended_gpu(computes=computes) as gpu:
            layer = torch.nn.Conv2d(3, 4, 3).to(CUDA)
            loss = layer(to_device(torch.randn(2, 3, 8, 8), CUDA)).square().mean()
            loss.backward()
            assert isinstance(loss.item(), float)
            found.append(gpu.counts)
    assert found[0] == found[1]
    assert found[0].launches


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_cpu_tensor_over_nccl_is_refused(gpu: PretendedGpu, group: None) -> None:
    dist.all_reduce(on_gpu(2))
    with pytest.raises(DeviceError, match="a tensor on cpu over NCCL"):
        dist.all_reduce(torch.ones(2))


def test_gpu_tensor_over_gloo_is_refused(gpu: PretendedGpu, group: None) -> None:
    gpu.gloo.add(dist.group.WORLD.group_name)
    dist.all_reduce(torch.ones(2))
    with pytest.raises(DeviceError, match="a tensor on cuda:0 over gloo"):
        dist.all_reduce(on_gpu(2))


def test_nothing_is_left_of_it() -> None:
    before = torch.cuda.is_available, Tensor.pin_memory, torch.autocast
    with pretended_gpu():
        assert torch.cuda.is_available()
    assert (torch.cuda.is_available, Tensor.pin_memory, torch.autocast) == before
    with torch.autocast("cpu", torch.bfloat16):  # the CPU's autocast leaves norms in bf16
        assert group_norm(torch.ones(1, 2, 2, 2, dtype=torch.bfloat16), 1).dtype is torch.bfloat16
