"""Feature spaces: the choice for each metric, missing weights, and the networks."""

import io
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from gfgw_prod.data.sources import Table
from gfgw_prod.distributed.cells import random_stream
from gfgw_prod.distributed.world import World
from gfgw_prod.evaluation.distances import frechet_distance, moments_of
from gfgw_prod.evaluation.evaluator import Evaluator
from gfgw_prod.evaluation.metric_spaces import choose_spaces
from gfgw_prod.evaluation.spaces import (
    INCEPTION_FILE,
    PROJECTIONS,
    Inception,
    NetworkSpace,
    Pixels,
    WeightFiles,
    build_space,
    load_dinov2,
    trained_with,
)
from gfgw_prod.features.extractors import build_extractor
from gfgw_prod.features.networks import Network
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.sampling.pictures import levels_of
from gfgw_prod.settings.evaluation import checked_features
from gfgw_prod.settings.networks import DINOV2
from gfgw_prod.settings.reading import resolve
from gfgw_prod.weights.published import INCEPTION, VGG16

LARGE = 3 * 224 * 224  # numbers in an image
SMALL_VIT = f"timm:{DINOV2}@224"


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No weights are cached."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *names: None)
    return tmp_path / "hub" / "checkpoints"


def test_without_a_list_every_metric_that_has_weights_is_measured() -> None:
    chosen = choose_spaces(None, "auto", WeightFiles(), "pixels", 64)
    assert chosen.by_metric == dict.fromkeys(("fd", "kid", "pr", "coverage", "memorisation"), "pixels")
    inception, dinov2 = chosen.notes  # one line for each file
    assert inception.startswith("kid is measured on pixels, fid is left out: ")
    assert INCEPTION_FILE in inception
    assert "vit_large_patch14_dinov2" in dinov2
    files = WeightFiles(dict.fromkeys(("inception", "dinov2", f"timm:{DINOV2}"), Path(__file__)))
    chosen = choose_spaces(None, "auto", files, SMALL_VIT, LARGE)
    assert chosen.notes == ()
    assert chosen.by_metric["kid"] == chosen.by_metric["fid"] == "inception"
    assert chosen.by_metric["fd-dinov2"] == "dinov2"
    assert chosen.by_metric["fd"] == chosen.by_metric["pr"] == SMALL_VIT
    assert chosen.used == [SMALL_VIT, "inception", "dinov2"]


def test_weights_are_found_in_the_cache_of_torch(empty_caches: Path) -> None:
    assert not WeightFiles().has("inception")
    empty_caches.mkdir(parents=True)
    (empty_caches / INCEPTION_FILE).touch()
    assert WeightFiles().find("inception") == empty_caches / INCEPTION_FILE


@pytest.mark.parametrize("features", ["inception", "dinov2", SMALL_VIT])
def test_space_that_is_asked_for_needs_its_weights(features: str) -> None:
    with pytest.raises(UserError, match=r"are missing; (put|name)"):
        choose_spaces(["pr"], features, WeightFiles(), "pixels", 64)


@pytest.mark.parametrize(("metric", "file"), [("fid", INCEPTION_FILE), ("fd-dinov2", "vit_large_patch14_dinov2")])
def test_metric_that_is_asked_for_needs_its_weights(metric: str, file: str) -> None:
    with pytest.raises(UserError, match=f"{metric} cannot be measured: .*{file}"):
        choose_spaces(["fd", metric], "auto", WeightFiles(), "pixels", 64)


def test_pixels_of_large_images_are_projected() -> None:
    for features, own in (("pixels", SMALL_VIT), ("auto", SMALL_VIT), ("auto", "pixels"), ("run", "pixels")):
        chosen = choose_spaces(["fd"], features, WeightFiles(), own, LARGE)
        assert chosen.by_metric == {"fd": "projected-pixels"}
        assert str(chosen) == "fd in projected-pixels"
    images = torch.randint(0, 256, (20, 3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    space, raw = build_space("projected-pixels", WeightFiles(), (3, 40, 40)), Pixels((3, 40, 40))
    assert space(images).shape == (20, space.dim) == (20, PROJECTIONS)
    torch.testing.assert_close(torch.pdist(space(images)), torch.pdist(raw(images)), rtol=0.15, atol=0)
    assert torch.equal(build_space("projected-pixels", WeightFiles(), (3, 40, 40))(images), space(images))


def test_run_is_the_network_that_it_was_trained_with_or_an_error() -> None:
    assert choose_spaces(["fd"], "auto", WeightFiles(), SMALL_VIT, 64).by_metric == {"fd": "pixels"}
    with pytest.raises(UserError, match="fd cannot be measured: the weights of timm:vit_small_patch14_dinov2"):
        choose_spaces(["fd"], "run", WeightFiles(), SMALL_VIT, 64)
    assert choose_spaces(["fd"], "run", WeightFiles(), "pixels", 64).by_metric == {"fd": "pixels"}


def test_network_of_timm_measures_in_the_file_that_it_is_given(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "weights.pth")
    settings = {"extractor": "timm", "network": "test_vit.r160_in1k", "image_size": 160, "pool": "avg"}
    config = resolve({"features": {**settings, "weights": tmp_path / "weights.pth"}})
    space = trained_with(config)
    assert space == checked_features("timm:test_vit.r160_in1k:avg@160", "--features")
    assert checked_features("timm:test_vit", "--features") == "timm:test_vit@224"
    chosen = choose_spaces(["fd"], "run", files := WeightFiles.of_run(config), space, LARGE)
    assert chosen.by_metric == {"fd": space}
    network, images = build_space(space, files, (3, 160, 160)), torch.full((1, 3, 160, 160), 7, dtype=torch.uint8)
    trained = build_extractor(config.features, (3, 160, 160))
    expected = trained(images.float() / 127.5 - 1)
    torch.testing.assert_close(nn.functional.normalize(network(images), dim=1), expected, atol=1e-5, rtol=1e-4)
    for wrong in ("timm:", "timm:a/b", "timm:a@0", "timm:a:max", "dinov2-small", "inception@299"):
        with pytest.raises(UserError, match=r"^--features should be auto, run, "):
            checked_features(wrong, "--features")


class Unread(FeatureExtractorInceptionV3):
    """The network as it is drawn."""

    def load_state_dict(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A file in the published format with random weights, and the library's network of them."""
    nothing, path = io.BytesIO(), tmp_path_factory.mktemp("weights") / INCEPTION_FILE
    torch.save({}, nothing)
    nothing.seek(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Unread("inception-v3-compat", ["2048"], nothing)
    torch.save(network.state_dict(), path)
    return path, network


def test_cached_file_must_have_the_published_bytes_and_a_named_one_gets_a_line(
    inception: tuple[Path, nn.Module], empty_caches: Path
) -> None:
    empty_caches.mkdir(parents=True)
    cached = empty_caches / INCEPTION_FILE
    cached.write_bytes(inception[0].read_bytes())
    with pytest.raises(UserError, match=rf"{cached} is damaged: its SHA-256 is .* is 6726825d.*evaluation\.inception"):
        build_space("inception", WeightFiles(), (1, 8, 8))
    lines: list[str] = []
    build_space("inception", WeightFiles({"inception": inception[0]}), (1, 8, 8), lines.append)
    [line] = lines
    named = f"evaluation.inception (evaluate --inception): {inception[0]}"
    assert line.startswith(f"{named} is not {INCEPTION_FILE} of torch-fidelity's")


def test_file_names_contain_the_first_digits_of_the_hash() -> None:
    for published in (INCEPTION, VGG16):
        assert published.file.endswith(f"-{published.sha256[:8]}.pth")


def grey(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_inception_is_the_librarys_network(inception: tuple[Path, nn.Module]) -> None:
    path, network = inception
    space = build_space("inception", WeightFiles({"inception": path}), (1, 8, 8))
    levels = grey(2)
    (expected,) = network(levels.expand(-1, 3, -1, -1))
    assert torch.equal(space(levels), expected)
    assert (expected.shape[1], space.dim) == (2048, 2048)
    assert len(space.digest() or "") == 64


class Copier(nn.Module):
    """A generator of noise."""

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return x


def tiny_vit() -> NetworkSpace:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone: nn.Module = timm.create_model("test_vit", pretrained=False, num_classes=0, img_size=224)
    return NetworkSpace(Network("test_vit.r160_in1k", 224), backbone)


def test_every_figure_is_taken_in_the_space_of_its_metric(
    inception: tuple[Path, nn.Module], alone: World, table: Table
) -> None:
    chosen = choose_spaces(["fd", "kid", "fid"], "auto", WeightFiles({"inception": inception[0]}), "pixels", 16)
    assert chosen.by_metric == {"fd": "pixels", "kid": "inception", "fid": "inception"}
    spaces = {"pixels": Pixels(table.image_shape), "inception": tiny_vit()}  # a quick network in its place
    figures = Evaluator(table, chosen, spaces, alone, num=40, seed=3, conditional=False).measure(Copier())
    assert set(figures) == {"fd", "kid", "kid_std", "fid"}
    noise = torch.stack([torch.randn(1, 4, 4, generator=random_stream(3, "evaluate", i)) for i in range(40)])
    for figure, space in (("fd", spaces["pixels"]), ("fid", spaces["inception"])):
        with torch.no_grad():
            rows = [space(levels_of(images)) for images in (noise, table.rows(torch.arange(60)))]
        assert figures[figure] == pytest.approx(frechet_distance(*map(moments_of, rows)), rel=1e-4)


def test_file_that_holds_code_or_other_weights_is_refused(tmp_path: Path) -> None:
    for content in ({"fc.weight": torch.zeros(2)}, Path("/code")):
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(UserError, match=rf"evaluation.inception .*weights.pth is not .*{INCEPTION_FILE}"):
            Inception(tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"--weights\) .*weights.pth is not a vit_small"):
        build_space(SMALL_VIT, WeightFiles({f"timm:{DINOV2}": tmp_path / "weights.pth"}), (3, 32, 32))
    with pytest.raises(UserError, match=r"no file .*none; it should be model.safetensors"):
        build_space("dinov2", WeightFiles({"dinov2": tmp_path / "none"}), (3, 32, 32))


def test_networks_see_normalised_images_of_their_side() -> None:
    seen: list[Tensor] = []
    space = tiny_vit()
    space.backbone.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    levels = torch.full((2, 1, 8, 8), 255, dtype=torch.uint8)
    assert space(levels).shape == (2, space.dim)
    assert seen[0].shape == (2, 3, 224, 224)
    mean, std = (space.backbone.pretrained_cfg[name][0] for name in ("mean", "std"))
    torch.testing.assert_close(seen[0][0, 0], torch.full((224, 224), (1 - mean) / std))


def test_position_embeddings_are_resampled_as_the_authors_of_dinov2_do(tmp_path: Path) -> None:
    tensors = timm.create_model(DINOV2, num_classes=0).state_dict()
    column = torch.arange(37.0).expand(37, 37).reshape(1, -1, 1)
    tensors["pos_embed"][:, 1:] = column  # the embedding of a patch is its column
    save_file(tensors, tmp_path / "model.safetensors")
    network = load_dinov2(DINOV2, tmp_path / "model.safetensors", "features.weights")
    found = network.state_dict()["pos_embed"][0, 1:, 0].reshape(16, 16)[8]
    of_pixels = (torch.arange(16) + 0.5) * 37 / 16.1 - 0.5  # without antialiasing, by a factor with an offset of 0.1
    torch.testing.assert_close(found[1:-1], of_pixels[1:-1], atol=0.06, rtol=0)
    assert (found[-2] - ((14.5) * 37 / 16 - 0.5)).abs() > 0.1  # as it would be without the offset


def test_pixels_span_the_range_of_images() -> None:
    levels = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    assert Pixels((1, 1, 1))(levels).tolist() == [[-1], [1]]
