"""Feature extractors: unit rows, weights from files, gradients to the images."""

import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from gfgw_prod.features.extractors import build_extractor, feature_dim
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.networks import DINOV2, FeatureSettings

SIDE = 28  # two patches by two: a small input keeps the network fast


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    """The published architecture with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model(DINOV2, pretrained=False, num_classes=0, img_size=SIDE).eval()


@pytest.fixture(scope="module")
def weights(backbone: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("dinov2")
    paths = {suffix: directory / f"model.{suffix}" for suffix in ("safetensors", "pth")}
    save_file(backbone.state_dict(), paths["safetensors"])
    torch.save(backbone.state_dict(), paths["pth"])
    return paths


def extractor_of(path: Path | None, side: int = SIDE) -> nn.Module:
    return build_extractor(FeatureSettings(extractor="dinov2", weights=path, image_size=side), (3, 8, 8))


def pictures(channels: int = 3, side: int = SIDE) -> torch.Tensor:
    return torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_pixel_features_are_the_pixels_at_unit_norm() -> None:
    images = pictures(3, 4)
    extractor = build_extractor(FeatureSettings(extractor="pixels"), (3, 4, 4))
    features = extractor(images)
    assert features.shape == (2, extractor.dim) == (2, 48)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(features * images.flatten(1).norm(dim=1, keepdim=True), images.flatten(1))


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_dinov2_features_are_the_backbones_class_token(backbone: nn.Module, weights: dict, suffix: str) -> None:
    images = pictures()
    extractor = extractor_of(weights[suffix])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = backbone(((images / 2 + 0.5) - mean[:, None, None]) / std[:, None, None])
    features = extractor(images)
    assert features.shape == (2, extractor.dim) == (2, 384)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(features, nn.functional.normalize(expected, dim=1), atol=1e-5, rtol=1e-4)


def test_weights_of_another_image_size_fit(weights: dict[str, Path]) -> None:
    features = extractor_of(weights["pth"], 42)(pictures())
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    native = extractor_of(weights["pth"])(pictures())
    assert (features * native).sum(dim=1).min() > 0.5  # the same network, seen at another resolution


def test_grey_images_of_another_size_are_accepted(weights: dict[str, Path]) -> None:
    extractor, grey = extractor_of(weights["pth"]), pictures(1, 8)
    torch.testing.assert_close(extractor(grey), extractor(grey.repeat(1, 3, 1, 1)))


def test_gradient_reaches_the_images_and_no_weight(weights: dict[str, Path]) -> None:
    extractor, images = extractor_of(weights["pth"]), pictures().requires_grad_()
    extractor(images)[:, 0].sum().backward()
    assert (images.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(parameter.grad is None for parameter in extractor.parameters())


def missing(path: Path) -> None:
    """Leave no file."""


def corrupt(path: Path) -> None:
    path.write_bytes(b"not weights" * 100)


def other_network(path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(3)}, path)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("spoil", [missing, corrupt, other_network], ids=lambda f: f.__name__)
def test_unusable_file_is_refused_in_one_line(spoil, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{suffix}"
    spoil(path)
    with pytest.raises(UserError, match=r"features\.weights") as caught:
        extractor_of(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pixel_constant_distinguishes_a_faint_image_from_a_strong_one() -> None:
    strong = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    images = torch.cat([strong, strong / 2])
    plain = build_extractor(FeatureSettings(extractor="pixels"), (1, 4, 4))(images)
    torch.testing.assert_close(plain[:3], plain[3:])
    extractor = build_extractor(FeatureSettings(extractor="pixels", pixel_constant=0.5), (1, 4, 4))
    features = extractor(images)
    assert features.shape == (6, extractor.dim) == (6, 17)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(features[:, :16] / features[:, 16:] * 0.5 * 4, images.flatten(1))


# One of each family of networks, the smallest: name, input side, and how timm pools it.
NETWORKS = {
    "vit_small_patch16_dinov3.lvd1689m": (32, "avg"),
    "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m": (32, "token"),
    "convnext_atto.d2_in1k": (64, None),
    "tf_efficientnet_lite0.in1k": (32, None),
    "resnet10t.c3_in1k": (32, None),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_of_timm_is_read_from_its_published_file(name: str, tmp_path: Path) -> None:
    side, pool = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        published = timm.create_model(name).eval()  # with its head, as in the file
    save_file(published.state_dict(), tmp_path / "model.safetensors")
    settings = {"extractor": "timm", "network": name, "image_size": side, "weights": tmp_path / "model.safetensors"}
    extractor = build_extractor(FeatureSettings(**settings), (3, side, side))
    images = pictures(3, side).requires_grad_()
    features = extractor(images)
    assert features.shape == (2, extractor.dim) == (2, feature_dim(FeatureSettings(**settings), (3, side, side)))
    features.sum().backward()
    assert (images.grad.flatten(1).norm(dim=1) > 0).all()

    config = published.pretrained_cfg
    mean, std = (torch.tensor(config[each])[:, None, None] for each in ("mean", "std"))
    normalised = (images.detach() / 2 + 0.5 - mean) / std
    if pool is None:  # takes images of any size
        expected = published.forward_head(published.forward_features(normalised), pre_logits=True)
        torch.testing.assert_close(features, nn.functional.normalize(expected, dim=1), atol=1e-5, rtol=1e-4)
    else:
        same = build_extractor(FeatureSettings(**settings, pool=pool), (3, side, side))
        assert torch.equal(same(images), features)
        other = build_extractor(FeatureSettings(**settings, pool="token" if pool == "avg" else "avg"), (3, side, side))
        assert not torch.allclose(other(images), features, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"network": "tf_efficientnet_lite9"}, r"^features\.network: timm has no network .*mean tf_efficientnet_lite"),
        ({"network": "hf-hub:timm/resnet10t.c3_in1k"}, r"^features\.network: timm has no network"),
        ({"network": "nosuchnet"}, r"timm has no network 'nosuchnet'; timm\.list_pretrained\(\) lists its names$"),
        ({"network": "resnet10t.c3_in1k", "image_size": 40}, r"multiple of 32, not 40 \(features\.image_size.*use 32"),
        ({"network": DINOV2, "image_size": 224 + 13}, r"multiple of 14, not 237 \(features\.image_size.*use 224"),
        ({"network": "resnet10t.c3_in1k", "pool": "token"}, r"resnet10t\.c3_in1k cannot be built with pool token"),
    ],
)
def test_network_that_cannot_be_is_refused_in_one_line(settings: dict, line: str, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").touch()
    with pytest.raises(UserError, match=line) as caught:
        build_extractor(FeatureSettings(extractor="timm", weights=tmp_path / "weights.pth", **settings), (3, 8, 8))
    assert "\n" not in str(caught.value)


def test_file_without_tensors_is_refused_without_advice_to_trust_it(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    how = FeatureSettings(extractor="timm", network="resnet10t.c3_in1k", weights=file, image_size=32)
    for content in (b"\x89PNG\r\n\x1a\n", pickle.dumps(print)):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"^features\.weights .* is not a resnet10t.* file: it holds no tensors$"):
            build_extractor(how, (3, 8, 8))
