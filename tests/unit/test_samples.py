"""Samples, grids, and sample files."""

import itertools
import json
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gfgw_prod.commands.sample import class_list, classes_of_columns
from gfgw_prod.data.sources import load_table
from gfgw_prod.distributed.cells import random_stream
from gfgw_prod.distributed.world import World
from gfgw_prod.generator import build_generator
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.sampling.files import Grid, ImageWriter, Pngs
from gfgw_prod.sampling.pictures import (
    columns_of,
    draw_samples,
    enlarge,
    grid_of,
    levels_of,
    rows_of_classes,
    write_png,
)
from gfgw_prod.sampling.sampler import CELL, Sampler, batches, cycle_classes
from gfgw_prod.settings.data import DataSettings
from gfgw_prod.settings.networks import GeneratorSettings

from .conftest import at_most

CPU = torch.device("cpu")


class Labelled(nn.Module):
    """Adds the class to the noise."""

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        assert (t == 1).all()
        return 0.01 * x + 0.1 * labels[:, None, None, None]


def draw(count: int = 10, *, seed: int = 3, stream: str = "grid") -> tuple[Tensor, Tensor]:
    return draw_samples(Labelled(), (1, 4, 4), range(3), count=count, seed=seed, stream=stream, device=CPU)


def test_more_samples_begin_with_the_same_ones() -> None:
    assert torch.equal(draw(12)[0][:10], draw(10)[0])


def test_classes_take_turns_and_reach_the_generator() -> None:
    images, labels = draw(7)
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    torch.testing.assert_close(images.mean(dim=(1, 2, 3)), 0.1 * labels.float(), atol=0.02, rtol=0)


def test_samples_differ_by_seed_stream_and_place() -> None:
    images = [draw(4)[0][0], draw(4)[0][3], draw(4, seed=4)[0][0], draw(4, stream="sample")[0][0]]
    assert len({tuple(image.flatten().tolist()) for image in images}) == 4


def network() -> nn.Module:
    settings = GeneratorSettings(model_channels=16, channel_mult=(1, 2), num_blocks=1, dropout=0.9, conditional=True)
    generator = build_generator(settings, (1, 8, 8), 10, seed=0).train()
    nn.init.normal_(generator.network.dec["8x8_aux_conv"].weight)
    return generator


def test_samples_of_a_network_are_the_same_bits_however_many_are_drawn_at_once() -> None:
    generator = network()
    pieces = [
        draw_samples(generator, (1, 8, 8), range(10), count=n, seed=0, stream="grid", device=CPU)[0]
        for n in (1, 33, 70)
    ]
    assert torch.equal(pieces[0], pieces[2][:1])
    assert torch.equal(pieces[1], pieces[2][:33])
    assert pieces[2].abs().max() == 1  # and without dropout
    sampler = Sampler(generator, (1, 8, 8), cycle_classes(range(10)), seed=0, stream="grid", device=CPU)
    assert torch.equal(sampler.images(64, 32)[:6], pieces[2][64:])


class Half(nn.Module):
    """Predicts half of its input."""

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        assert (t == 1).all()
        return x / 2


def test_image_is_one_pass_over_noise_of_its_own() -> None:
    found = Sampler(Half(), (1, 2, 2), cycle_classes([0]), seed=1, stream="sample", device=CPU).images(0, 32)
    noise = torch.randn(1, 2, 2, generator=random_stream(1, "sample", 5))
    assert torch.equal(found[5], (noise / 2).clamp(-1, 1))


def test_batches_hold_every_image_once() -> None:
    for count, ranks in itertools.product((1, 31, 32, 500, 513, 1700), (1, 2, 3)):
        of_ranks = [list(batches(count, 256, World(rank, ranks, CPU))) for rank in range(ranks)]
        numbers = []
        for at_once in zip(*of_ranks, strict=True):
            assert len({(batch.first, batch.count, batch.size) for batch in at_once}) == 1
            assert at_once[0].size % CELL == 0
            made = [number for batch in at_once for number in range(batch.start, batch.start + batch.size)]
            numbers += made[: at_once[0].count]
        assert numbers == list(range(count))


@pytest.mark.parametrize("labels", [torch.tensor([2, 0, 1, 2, 0]), None])
def test_pngs_are_a_data_set_of_the_same_images_and_classes(labels: Tensor | None, tmp_path: Path) -> None:
    levels = torch.arange(5 * 3 * 4 * 4, dtype=torch.uint8).view(5, 3, 4, 4)
    (tmp_path / "dataset.json").write_text('{"labels": [["000007.png", 1]]}')  # of an earlier command
    writer = Pngs(tmp_path, 5, labels)
    writer.add(0, levels[:2])
    writer.add(2, levels[2:])
    assert writer.close() == f"5 images in {tmp_path}"
    table = load_table(DataSettings(source="folder", path=tmp_path))
    assert torch.equal(table.images, levels)
    assert table.labels.tolist() == ([0] * 5 if labels is None else labels.tolist())


def test_pictures_of_an_earlier_command_do_not_stay_in_a_data_set(tmp_path: Path) -> None:
    def write(count: int) -> None:
        writer = Pngs(tmp_path, count, torch.zeros(count, dtype=torch.int64))
        assert not (tmp_path / "dataset.json").exists()
        writer.add(0, torch.zeros(count, 1, 2, 2, dtype=torch.uint8))
        writer.close()

    write(3)
    write(3)
    write(4)
    for name in ("000003.png", "0000001.png"):
        with pytest.raises(UserError, match=f"holds {name}, which is none of the 3 images"):
            write(3)
        (tmp_path / name).replace(tmp_path / "0000001.png")
    assert (tmp_path / "dataset.json").exists()


@pytest.mark.parametrize("content", ['{"labels": [["00000/img00000000.png", 3], ["000001.png", 1]]}', "{", ""])
def test_labels_of_a_data_set_in_the_directory_are_kept(content: str, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=r"--out .* holds the dataset\.json of another data set"):
        Pngs(tmp_path, 2)
    assert (tmp_path / "dataset.json").read_text() == content


@pytest.mark.parametrize("writer_in", [lambda place: Pngs(place, 2), lambda place: Grid(place, 1)], ids=["png", "grid"])
def test_files_that_cannot_be_written_to_their_end_are_removed(
    writer_in: Callable[[Path], ImageWriter], tmp_path: Path
) -> None:
    noise = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    writer = writer_in(tmp_path)

    def write() -> None:
        writer.add(0, noise)
        writer.close()

    with at_most(resource.RLIMIT_FSIZE, 4000), pytest.raises(OSError, match="too large"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_levels_span_the_range() -> None:
    images = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(5, 1, 1, 1)
    assert levels_of(images).flatten().tolist() == [0, 0, 128, 255, 255]


def test_tiny_images_are_enlarged_by_whole_pixels() -> None:
    images = torch.arange(2 * 3 * 64, dtype=torch.uint8).view(2, 3, 8, 8)
    large = enlarge(images, 64)
    assert large.shape == (2, 3, 64, 64)
    assert torch.equal(large[..., ::8, ::8], images)
    assert torch.equal(large[..., 7::8, 7::8], images)
    assert enlarge(large, 64).shape == large.shape


def test_grid_holds_every_image_in_its_place() -> None:
    images = levels_of(torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, 1, 64, 64))
    picture = grid_of(images, columns=2)
    assert picture.shape == (3, 3 * 66 + 2, 2 * 66 + 2)
    for index, level in enumerate(images[:, 0, 0, 0]):
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


def test_grid_has_a_column_for_each_class_or_for_32_of_them() -> None:
    labels = torch.tensor([5, 0, 2, 0, 5, 2, 0, 2, 2])
    assert columns_of(labels) == [0, 2, 5]
    order = torch.arange(9).flip(0)
    assert rows_of_classes(labels, [0, 2, 5], 3, order).tolist() == [6, 8, 4, 3, 7, 0, 1, 5, 4]
    shown = columns_of(torch.arange(1000))
    assert len(shown) == 32
    assert shown == sorted(set(shown))
    assert shown[0] == 0
    assert shown[-1] > 960


def test_grid_of_many_classes_says_how_many_it_shows(alone: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert classes_of_columns((2, 0, 1), alone) == (2, 0, 1)
    assert capsys.readouterr().err == ""
    assert classes_of_columns(tuple(range(1000)), alone) == tuple(columns_of(torch.arange(1000)))
    assert "the grid has a column for 32 of 1,000 classes; --classes chooses others" in capsys.readouterr().err


def test_classes_are_asked_for_by_id_or_name() -> None:
    names = ("animals", "flags", "7")
    assert class_list("0,2-4, 1") == (0, 2, 3, 4, 1)
    assert class_list("flags,0, animals", names) == (1, 0, 0)
    assert class_list("7,6", names) == (2, 6)  # a name goes before an id
    assert class_list("1,10,2", ("1", "10", "2")) == (0, 1, 2)
    for text in ("flag", "", "Flags", "0-x"):
        with pytest.raises(UserError, match=r"--classes .* names such as animals, flags, 7, not"):
            class_list(text, names)


def test_names_of_classes_stand_in_the_labels_of_samples(tmp_path: Path) -> None:
    writer = Pngs(tmp_path, 2, torch.tensor([1, 0]), ("cats", "dogs"))
    writer.add(0, torch.zeros(2, 1, 2, 2, dtype=torch.uint8))
    writer.close()
    content = json.loads((tmp_path / "dataset.json").read_text())
    assert content == {"labels": [["000000.png", 1], ["000001.png", 0]], "class_names": ["cats", "dogs"]}
    assert load_table(DataSettings(source="folder", path=tmp_path)).class_names == ("cats", "dogs")
    with zipfile.ZipFile(tmp_path / "samples.zip", "w") as archive:
        for name in ("000000.png", "000001.png", "dataset.json"):
            archive.write(tmp_path / name, name)
    assert load_table(DataSettings(source="zip", path=tmp_path / "samples.zip")).class_names == ("cats", "dogs")
    (tmp_path / "dataset.json").write_text(json.dumps({**content, "class_names": ["cats"]}))  # too few
    assert load_table(DataSettings(source="folder", path=tmp_path)).class_names == ()
