"""LPIPS from a VGG-16 weights file."""

from pathlib import Path

import lpips
import pytest
import torch
from torch import nn
from torchvision.models import vgg

from gfgw_prod.losses.perceptual import PerceptualLoss, build_perceptual
from gfgw_prod.process.exit_codes import UserError


@pytest.fixture(scope="module")
def layers() -> nn.Sequential:
    """The convolutions of a VGG-16 with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return vgg.make_layers(vgg.cfgs["D"], batch_norm=False)


@pytest.fixture(scope="module")
def trunk(layers: nn.Sequential, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of them in torchvision's format, without the classifier, which LPIPS does not use."""
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save({f"features.{name}": tensor for name, tensor in layers.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def loss(trunk: Path) -> PerceptualLoss:
    return build_perceptual(trunk)


def pictures(side: int, seed: int, channels: int = 3) -> torch.Tensor:
    return torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_loss_is_lpips_with_the_files_weights(loss: PerceptualLoss, layers: nn.Sequential) -> None:
    direct = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    convolutions = [[m for m in net.modules() if isinstance(m, nn.Conv2d)] for net in (layers, direct.net)]
    for source, destination in zip(*convolutions, strict=True):
        destination.load_state_dict(source.state_dict())
    first, second = pictures(32, 1), pictures(32, 2)
    expected = direct(first, second).mean()
    assert expected > 0
    torch.testing.assert_close(loss(first, second), expected)


def test_equal_images_are_at_distance_zero(loss: PerceptualLoss) -> None:
    assert loss(pictures(32, 1), pictures(32, 1)) == 0


def test_gradient_reaches_the_images_and_no_weight(loss: PerceptualLoss) -> None:
    predicted = pictures(32, 1).requires_grad_()
    loss(predicted, pictures(32, 2)).backward()
    assert predicted.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in loss.parameters())


def test_tiny_grey_images_are_enlarged_and_expanded_to_rgb(loss: PerceptualLoss) -> None:
    first, second = pictures(8, 1, channels=1), pictures(8, 2, channels=1)
    large = [nn.functional.interpolate(i, (32, 32), mode="bilinear").repeat(1, 3, 1, 1) for i in (first, second)]
    torch.testing.assert_close(loss(first, second), loss(*large))


def missing(path: Path) -> None:
    """Leave no file."""


def corrupt(path: Path) -> None:
    path.write_bytes(b"not weights" * 100)


def truncated(path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    path.write_bytes(path.read_bytes()[:-400])


def other_network(path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(3)}, path)


def other_shapes(path: Path) -> None:
    names = [n for n, _ in vgg.make_layers(vgg.cfgs["D"], batch_norm=False).named_parameters()]
    torch.save({f"features.{name}": torch.zeros(1) for name in names}, path)


def single_tensor(path: Path) -> None:
    torch.save(torch.zeros(3), path)


def directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    "spoil",
    [missing, corrupt, truncated, other_network, other_shapes, single_tensor, directory],
    ids=lambda f: f.__name__,
)
def test_unusable_trunk_is_refused_in_one_line(spoil, tmp_path: Path) -> None:
    path = tmp_path / "trunk.pth"
    spoil(path)
    with pytest.raises(UserError, match=r"loss\.lpips_trunk") as caught:
        build_perceptual(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
