"""Folders, archives and parquet files as tables: the same images are the same data, from any kind of source."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from gfgw_prod.data.decoding import list_source
from gfgw_prod.data.images import InvalidImageError, Rules
from gfgw_prod.data.packing import pack
from gfgw_prod.data.packs import Pack
from gfgw_prod.data.sources import Table, load_table, outline_of
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.data import DataSettings
from tests import image_files

WRITERS = {
    "folder": image_files.write_folder,
    "class folders": image_files.write_class_folders,
    "zip": image_files.write_zip,
    "parquet": image_files.write_parquet,
}


@pytest.fixture(scope="module")
def colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (23, 3, 6, 6), dtype=np.uint8)


LABELS = [row * 7 % 5 for row in range(23)]


def source_of(form: str) -> str:
    """The ``data.source`` that reads a kind of files."""
    return "folder" if form == "class folders" else form


def taken(source: str, path: Path, **options: object) -> Table:
    return load_table(DataSettings(source=source_of(source), path=path, **options))


@pytest.mark.parametrize("source", WRITERS)
def test_digits_as_files_are_the_digits(source: str, tmp_path: Path) -> None:
    digits = load_table(DataSettings())
    images, labels = digits.images[:150].numpy(), digits.labels[:150]
    path = WRITERS[source](tmp_path / f"digits.{source}", images, labels.tolist())
    table = taken(source, path, grey=True, peak=16)
    assert torch.equal(table.images, digits.images[:150])
    assert torch.equal(table.labels, labels)
    assert table.fingerprint() == Table(digits.images[:150], labels, 16, 10).fingerprint()


@pytest.mark.parametrize("source", WRITERS)
def test_colour_images_are_decoded_exactly(source: str, colours: np.ndarray, tmp_path: Path) -> None:
    path = WRITERS[source](tmp_path / f"set.{source}", colours, LABELS)
    table = taken(source, path)
    assert np.array_equal(table.images.numpy(), colours)
    assert (table.labels.tolist(), table.num_classes, table.peak) == (LABELS, 5, 255)
    found = outline_of(DataSettings(source=source_of(source), path=path))
    assert found == (table.image_shape, table.num_classes, len(table), max(map(LABELS.count, LABELS)))


def test_classes_are_the_folders_at_the_top_in_the_order_of_their_names(colours: np.ndarray, tmp_path: Path) -> None:
    image_files.write_class_folders(tmp_path, colours, LABELS)
    (tmp_path / "class-3" / "deeper").mkdir()
    (tmp_path / "class-3" / "deeper" / "one.PNG").write_bytes(image_files.png(colours[0]))
    (tmp_path / "class-2" / "notes.txt").write_text("skipped")
    (tmp_path / "class-2" / ".hidden.png").write_text("skipped")
    table = taken("folder", tmp_path)
    assert table.labels.tolist() == [*LABELS, 3]  # by their names in those folders: numbers before "deeper"
    assert np.array_equal(table.images[:23].numpy(), colours)
    assert table.num_classes == 5


def test_files_of_one_name_come_in_the_order_of_their_classes(colours: np.ndarray, tmp_path: Path) -> None:
    for label in range(3):
        image_files.write_class_folders(tmp_path, colours[4 * label : 4 * label + 4], [label] * 4)
    table = taken("folder", tmp_path)
    assert table.labels.tolist() == [0, 1, 2] * 4
    assert np.array_equal(table.images.numpy(), colours[[4 * (row % 3) + row // 3 for row in range(12)]])


def test_hidden_and_system_folders_are_skipped_in_folders_and_archives(colours: np.ndarray, tmp_path: Path) -> None:
    place = image_files.write_folder(tmp_path / "set", colours, LABELS)
    hidden = (".ipynb_checkpoints", "00000/.thumbs", "__MACOSX/00000", "00000/@eaDir", "lost+found")
    for name in hidden:
        (place / name).mkdir(parents=True)
        (place / name / "a.png").write_bytes(image_files.png(colours[0]))
    shutil.make_archive(str(tmp_path / "zipped"), "zip", place)
    (place / "lost+found" / "locked.png").symlink_to("/proc/self/mem")  # fails whoever reads it
    for source, path in (("folder", place), ("zip", tmp_path / "zipped.zip")):
        table = taken(source, path)
        assert np.array_equal(table.images.numpy(), colours)
        assert table.labels.tolist() == LABELS


def test_links_to_folders_are_followed_but_not_in_circles(colours: np.ndarray, tmp_path: Path) -> None:
    image_files.write_class_folders(tmp_path / "set", colours, LABELS)
    (tmp_path / "set" / "class-0" / "round").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "set" / "class-1")
    table = taken("folder", tmp_path / "set")
    assert table.num_classes == 6
    assert len(table) == 23 + LABELS.count(1)


def test_images_without_classes_are_of_one_class(colours: np.ndarray, tmp_path: Path) -> None:
    for row in range(4):
        (tmp_path / f"{row}.png").write_bytes(image_files.png(colours[row]))
    table = taken("folder", tmp_path)
    assert (table.labels.tolist(), table.num_classes) == ([0] * 4, 1)


def test_archives_and_parquet_files_of_a_directory_are_one_set(colours: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "zips").mkdir()
    image_files.write_zip(tmp_path / "zips" / "a.zip", colours[:10], LABELS[:10])
    image_files.write_zip(tmp_path / "zips" / "b.zip", colours[10:], LABELS[10:])
    image_files.write_parquet(tmp_path / "parquet", colours, LABELS, files=3, group_rows=4)
    for source, place in (("zip", "zips"), ("parquet", "parquet")):
        table = taken(source, tmp_path / place)
        assert np.array_equal(table.images.numpy(), colours)
        assert table.labels.tolist() == LABELS


def test_plain_binary_columns_under_other_names_are_read(colours: np.ndarray, tmp_path: Path) -> None:
    columns = {"img": [image_files.png(each) for each in colours], "fine": pa.array(LABELS, pa.int32())}
    pq.write_table(pa.table(columns), tmp_path / "one.parquet")
    table = taken("parquet", tmp_path / "one.parquet", image_column="img", label_column="fine")
    assert np.array_equal(table.images.numpy(), colours)
    assert (table.labels.tolist(), table.num_classes) == (LABELS, 5)
    unlabelled = taken("parquet", tmp_path / "one.parquet", image_column="img", label_column=None)
    assert (unlabelled.labels.unique().tolist(), unlabelled.num_classes) == ([0], 1)


def test_row_group_is_read_in_batches_in_the_order_of_its_rows(colours: np.ndarray, tmp_path: Path) -> None:
    images = colours[np.arange(100) % 23]
    labels = [row % 7 for row in range(100)]
    image_files.write_parquet(tmp_path / "structs", images, labels, group_rows=60)
    pq.write_table(pa.table({"image": [*map(image_files.png, images)], "label": labels}), tmp_path / "plain.parquet")
    for name in ("structs", "plain.parquet"):
        table = taken("parquet", tmp_path / name)
        assert np.array_equal(table.images.numpy(), images)
        assert table.labels.tolist() == labels


@pytest.mark.parametrize("name", ["dataset.json", "Dataset.JSON"])
def test_archive_of_one_folder_is_the_same_as_that_folder(colours: np.ndarray, tmp_path: Path, name: str) -> None:
    place = image_files.write_folder(tmp_path / "set", colours, LABELS)
    (place / "dataset.json").rename(place / name)
    shutil.make_archive(str(tmp_path / "zipped"), "zip", tmp_path, "set")
    shutil.unpack_archive(tmp_path / "zipped.zip", tmp_path / "unpacked")
    for source, path in (("folder", place), ("zip", tmp_path / "zipped.zip"), ("folder", tmp_path / "unpacked")):
        table = taken(source, path)
        assert np.array_equal(table.images.numpy(), colours)
        assert (table.labels.tolist(), table.num_classes) == (LABELS, 5)
    with zipfile.ZipFile(tmp_path / "zipped.zip", "a") as archive:
        archive.writestr("beside.png", image_files.png(colours[0]))
    assert taken("zip", tmp_path / "zipped.zip").num_classes == 1  # no folder holds all of it


@pytest.mark.parametrize("source", ["folder", "zip"])
def test_dataset_json_that_is_not_read_is_named(source: str, colours: np.ndarray, tmp_path: Path) -> None:
    for name in ("one", "two"):
        image_files.write_folder(tmp_path / "sets" / name, colours[:3], LABELS[:3])
    shutil.make_archive(str(tmp_path / "zipped"), "zip", tmp_path / "sets")
    lines: list[str] = []
    path = tmp_path / ("sets" if source == "folder" else "zipped.zip")
    load_table(DataSettings(source=source, path=path), lines.append)
    assert lines[-1] == "one/dataset.json is not read: labels are read from dataset.json only"


def test_label_column_of_nulls_is_refused(colours: np.ndarray, tmp_path: Path) -> None:
    columns = {"image": [image_files.png(each) for each in colours], "label": pa.nulls(len(colours), pa.int64())}
    pq.write_table(pa.table(columns), tmp_path / "one.parquet")
    for on_error in ("fail", "skip"):
        with pytest.raises(UserError, match=r"data\.label_column label holds no class ids, nulls alone; set"):
            taken("parquet", tmp_path / "one.parquet", on_error=on_error)
    assert taken("parquet", tmp_path / "one.parquet", label_column=None).num_classes == 1


def test_photos_are_patches_of_scikit_learns() -> None:
    table = load_table(DataSettings(source="photos"))
    china, flower = load_sample_images().images
    assert (len(table), table.image_shape, table.num_classes) == (1950, (3, 32, 32), 2)
    assert np.array_equal(table.images[40].numpy(), china[16:48, 16:48].transpose(2, 0, 1))
    assert np.array_equal(table.images[-1].numpy(), flower[384:416, 608:640].transpose(2, 0, 1))
    assert load_table(DataSettings(source="photos", image_size=64)).image_shape == (3, 64, 64)
    with pytest.raises(UserError, match=r"data\.image_size should be at most 427"):
        load_table(DataSettings(source="photos", image_size=428))


def row_of(pixels: np.ndarray, **rules: object) -> np.ndarray:
    return Rules(**rules).decode(image_files.png(pixels.transpose(2, 0, 1)))


def test_resizing_takes_the_largest_centred_square_and_the_named_filter() -> None:
    photo = load_sample_images().images[0]
    square = Image.fromarray(photo[:, 106:533])
    for name, resampling in (("lanczos", Image.Resampling.LANCZOS), ("box", Image.Resampling.BOX)):
        expected = np.asarray(square.resize((64, 64), resampling)).transpose(2, 0, 1)
        assert np.array_equal(row_of(photo, image_size=64, resize=name), expected)


def test_adm_rule_halves_by_box_then_resizes_bicubic_and_crops() -> None:
    photo = load_sample_images().images[0]
    image = Image.fromarray(photo)
    for side in ((320, 213), (160, 106)):
        image = image.resize(side, Image.Resampling.BOX)
    image = image.resize((round(160 * 64 / 106), 64), Image.Resampling.BICUBIC)
    left = (image.width - 64) // 2
    expected = np.asarray(image)[:, left : left + 64].transpose(2, 0, 1)
    assert np.array_equal(row_of(photo, image_size=64, resize="adm"), expected)


@pytest.mark.parametrize("resize", ["lanczos", "box", "adm"])
@pytest.mark.parametrize("sides", [(1, 1), (1, 50), (9, 8), (8, 8), (300, 7)])
def test_any_image_becomes_a_row_of_the_size(resize: str, sides: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 17, (*sides, 3), dtype=np.uint8)
    row = row_of(pixels, image_size=8, resize=resize, peak=16)
    assert row.shape == (3, 8, 8)
    assert row.max() <= 16  # filters overshoot


def test_grey_images_are_repeated_and_colours_weighted() -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    assert np.array_equal(Rules().decode(image_files.png(grey)), grey.repeat(3, axis=0))
    red = np.zeros((8, 8, 3), dtype=np.uint8)
    red[..., 0] = 255
    assert set(row_of(red, grey=True).flatten().tolist()) == {76}  # ITU-R 601-2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "TIFF tiff_lzw", "WEBP"])
def test_orientation_is_applied_in_no_format(kind: str, orientation: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8)
    image, exif, written = Image.fromarray(pixels), Image.Exif(), io.BytesIO()
    exif[274] = orientation
    name, _, compression = kind.partition(" ")
    options = {"compression": compression} if compression else {"lossless": True} if kind == "WEBP" else {}
    image.save(written, name, exif=exif, **options)
    assert np.array_equal(Rules().decode(written.getvalue()), pixels.transpose(2, 0, 1))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


def test_transparent_images_are_put_on_the_background() -> None:
    pixels = np.zeros((2, 2, 4), dtype=np.uint8)
    pixels[0, :, 0], pixels[0, :, 3], pixels[1, 0, 3] = 255, 255, 51  # opaque red above a fifth of black, and nothing
    content = encoded(Image.fromarray(pixels), "PNG")
    with pytest.raises(InvalidImageError, match=r"transparent pixels; data\.background white"):
        Rules().decode(content)
    for background, level in (("white", 255), ("black", 0)):
        row = Rules(background=background).decode(content)
        assert row[:, 0].tolist() == [[255, 255], [0, 0], [0, 0]]
        assert row[:, 1].tolist() == [[round(level * 0.8), level]] * 3
    palette = encoded(Image.new("P", (4, 4)), "GIF", transparency=0)
    assert (Rules(background="white", grey=True).decode(palette) == 255).all()
    opaque = encoded(Image.new("RGB", (4, 4), "red"), "PNG")
    assert np.array_equal(Rules(background="white").decode(opaque), Rules().decode(opaque))


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True})])
def test_first_frame_stands_for_an_animation(kind: str, options: dict[str, object], tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    content = encoded(red, kind, save_all=True, append_images=[blue], **options)
    assert np.array_equal(Rules().decode(content), np.asarray(red).transpose(2, 0, 1))
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / f"moving.{kind.lower()}").write_bytes(content)
    assert len(load_table(DataSettings(source="folder", path=tmp_path))) == 1


@pytest.mark.parametrize("source", ["folder", "zip"])
def test_files_of_other_kinds_are_counted_in_a_line(source: str, colours: np.ndarray, tmp_path: Path) -> None:
    path = WRITERS[source](tmp_path / f"set.{source}", colours, LABELS)
    assert list_source(DataSettings(source=source, path=path)).notes == ()
    for name in ("a.heic", "b.AVIF", "c", "d.heic", ".hidden"):
        if source == "zip":
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr(name, b"")
        else:
            (path / name).touch()
    note = "left out 4 files not named like images (.avif, .heic, no suffix)"
    assert list_source(DataSettings(source=source, path=path)).notes == (note,)


def test_folder_without_images_is_refused_with_the_names_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.heic").touch()
    line = r"^data\.path .*: no image there; names should end in \.png .* \.pgm; left out 1 file not .* \(\.heic\)$"
    with pytest.raises(UserError, match=line):
        load_table(DataSettings(source="folder", path=tmp_path))


def test_names_of_classes_pass_through_folders_parquet_files_and_packs(colours: np.ndarray, tmp_path: Path) -> None:
    for number, name in enumerate(("flags", "animals", "ünïcode")):
        (tmp_path / "folder" / name).mkdir(parents=True)
        (tmp_path / "folder" / name / "a.png").write_bytes(image_files.png(colours[number]))
    settings = DataSettings(source="folder", path=tmp_path / "folder")
    assert load_table(settings).class_names == ("animals", "flags", "ünïcode")
    packed = pack(list_source(settings), tmp_path / "pack")
    assert packed.class_names == Pack.read(tmp_path / "pack").class_names == ("animals", "flags", "ünïcode")
    assert load_table(DataSettings(source="packed", path=tmp_path / "pack")).class_names == packed.class_names


def test_values_above_the_peak_are_invalid() -> None:
    with pytest.raises(InvalidImageError, match=r"value of 63, above data\.peak 16"):
        Rules(grey=True, peak=16).decode(image_files.png(np.arange(64, dtype=np.uint8).reshape(1, 8, 8)))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_of_16_bits_are_invalid_and_not_cut_to_8(channels: int) -> None:
    with pytest.raises(InvalidImageError, match="has 16 bits"):
        Rules().decode(image_files.png_of_16_bits(4, channels))
    with pytest.raises(InvalidImageError, match="has 16 bits"):
        Rules().decode(image_files.tiff_of_16_bits(4))


def test_shape_is_that_of_most_images_wherever_others_lie(colours: np.ndarray, tmp_path: Path) -> None:
    image_files.write_class_folders(tmp_path, colours, LABELS)
    (tmp_path / "class-0" / "000000.png").write_bytes(image_files.png(colours[0, :, :5]))
    with pytest.raises(UserError, match=r"class-0/000000\.png has 6 x 5 pixels, most of the first images 6 x 6"):
        taken("folder", tmp_path)
    table = taken("folder", tmp_path, on_error="skip")
    assert np.array_equal(table.images.numpy(), colours[1:])
    assert outline_of(DataSettings(source="folder", path=tmp_path))[0] == (3, 6, 6)
    for row in range(1, 12):
        (tmp_path / f"class-{LABELS[row]}" / f"{row:06d}.png").write_bytes(image_files.png(colours[row, :, :5]))
    assert taken("folder", tmp_path, on_error="skip").image_shape == (3, 5, 6)  # 12 of 23
    (tmp_path / f"class-{LABELS[22]}" / "000022.png").unlink()
    (tmp_path / "class-0" / "000000.png").unlink()
    assert taken("folder", tmp_path, on_error="skip").image_shape == (3, 5, 6)  # 11 and 10
    (tmp_path / f"class-{LABELS[11]}" / "000011.png").unlink()
    assert taken("folder", tmp_path, on_error="skip").image_shape == (3, 5, 6)  # 10 each, and the first


def test_large_sources_must_be_packed(colours: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = image_files.write_zip(tmp_path / "set.zip", colours, LABELS)
    monkeypatch.setattr("gfgw_prod.data.sources.MAX_BYTES_UNPACKED", 1000)
    with pytest.raises(UserError, match=r"pack them once \(gfgw pack\)"):
        taken("zip", path)


@pytest.mark.parametrize("source", [*WRITERS, "packed"])
def test_missing_path_is_named(source: str, tmp_path: Path) -> None:
    for path in (None, tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match=r"data\.path") as caught:
            taken(source, path)
        assert "\n" not in str(caught.value)


def test_dataset_json_without_labels_is_of_one_class(colours: np.ndarray, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("a.png", image_files.png(colours[0]))
        archive.writestr("dataset.json", json.dumps({"labels": None}))
    assert taken("zip", tmp_path / "set.zip").num_classes == 1
