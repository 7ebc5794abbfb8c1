"""Samples from seeds, grids and PNG files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gfgw_prod.config import GeneratorSettings
from gfgw_prod.generator import build_generator
from gfgw_prod.samples import draw_samples, enlarge, grid_of, to_bytes, write_png

CPU = torch.device("cpu")


class Labelled(nn.Module):
    """Adds the class to the noise."""

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        assert (t == 1).all()
        return 0.01 * x + 0.1 * labels[:, None, None, None]


def draw(count: int = 10, *, batch: int = 250, seed: int = 3, stream: str = "grid") -> tuple[Tensor, Tensor]:
    return draw_samples(Labelled(), (1, 4, 4), 3, count=count, seed=seed, stream=stream, device=CPU, batch=batch)


@pytest.mark.parametrize("batch", [1, 3, 10])
def test_samples_do_not_depend_on_the_batch(batch: int) -> None:
    assert torch.equal(draw(batch=batch)[0], draw()[0])


def test_more_samples_begin_with_the_same_ones() -> None:
    assert torch.equal(draw(12)[0][:10], draw(10)[0])


def test_classes_take_turns_and_reach_the_generator() -> None:
    images, labels = draw(7)
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    torch.testing.assert_close(images.mean(dim=(1, 2, 3)), 0.1 * labels.float(), atol=0.02, rtol=0)


def test_samples_differ_by_seed_stream_and_place() -> None:
    images = [draw(4)[0][0], draw(4)[0][3], draw(4, seed=4)[0][0], draw(4, stream="sample")[0][0]]
    assert len({tuple(image.flatten().tolist()) for image in images}) == 4


def test_samples_of_a_network_are_made_without_dropout_and_stay_in_range() -> None:
    settings = GeneratorSettings(model_channels=16, channel_mult=(1, 2), num_blocks=1, dropout=0.9)
    generator = build_generator(settings, (1, 8, 8), 10, seed=0).train()
    nn.init.normal_(generator.network.dec["8x8_aux_conv"].weight)
    drawn = [
        draw_samples(generator, (1, 8, 8), 10, count=6, seed=0, stream="grid", device=CPU, batch=batch)[0]
        for batch in (2, 6)
    ]
    torch.testing.assert_close(*drawn, atol=1e-4, rtol=1e-4)
    assert drawn[0].abs().max() == 1


def test_bytes_span_the_range_in_three_channels() -> None:
    images = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(5, 1, 1, 1)
    assert to_bytes(images).tolist() == [[[[level]]] * 3 for level in (0, 0, 128, 255, 255)]


def test_tiny_images_are_enlarged_by_whole_pixels() -> None:
    images = torch.arange(2 * 3 * 64, dtype=torch.uint8).view(2, 3, 8, 8)
    large = enlarge(images, 64)
    assert large.shape == (2, 3, 64, 64)
    assert torch.equal(large[..., ::8, ::8], images)
    assert torch.equal(large[..., 7::8, 7::8], images)
    assert enlarge(large, 64).shape == large.shape


def test_grid_holds_every_image_in_its_place() -> None:
    images = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, 1, 64, 64)
    picture = grid_of(images, columns=2, gap=2)
    assert picture.shape == (3, 3 * 66 + 2, 2 * 66 + 2)
    levels = to_bytes(images)[:, 0, 0, 0]
    for index, level in enumerate(levels):
        top, left = 2 + index // 2 * 66, 2 + index % 2 * 66
        assert (picture[:, top : top + 64, left : left + 64] == level).all()
    assert (picture[:, :2] == 0).all()
    assert (picture[:, 2 + 2 * 66 :, 2 + 66 :] == 0).all()


def test_picture_survives_its_png_file(tmp_path: Path) -> None:
    picture = torch.randint(0, 256, (3, 5, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    write_png(picture, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), picture.permute(1, 2, 0).numpy())
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
