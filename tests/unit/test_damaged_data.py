"""Three hundred damaged inputs: each is named in one line, and with ``skip`` all other images are kept."""

import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gfgw_prod.data.decoding import list_source
from gfgw_prod.data.sources import load_table
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.data import DataSettings
from tests import image_files

from . import damaged_data
from .conftest import at_most

CASES = damaged_data.cases()
SOURCES = ("folder", "zip", "parquet")


def faults_of(case: damaged_data.Case, place: Path) -> list[str]:
    """What is wrong with the handling of a damaged input."""
    damaged_data.start(case.source, place)
    good = load_table(DataSettings(source=case.source, path=place))
    case.add(place)
    faults, lines = [], []
    try:
        load_table(DataSettings(source=case.source, path=place))
        faults.append("accepted")
    except UserError as error:
        lines.append(str(error))
    try:
        table = load_table(DataSettings(source=case.source, path=place, on_error="skip"), lines.append)
        kept = {image.numpy().tobytes() for image in table.images}
        missing = [image for image in good.images if image.numpy().tobytes() not in kept]
        if missing or not torch.equal(table.labels.unique(), good.labels.unique()):
            faults.append(f"{len(missing)} good images lost")
    except UserError as error:
        faults.append(f"nothing left: {error}")
    if len(lines) < 2:
        faults.append("not named")
    for line in lines:
        if not line.isprintable() or len(line) > 1000:
            faults.append(f"not one line: {line[:300]!r}")
    if not all(case.name in line for line in lines[:1]) or not any(case.name in line for line in lines[1:]):
        faults.append(f"does not name {case.name}: {lines}")
    return faults


def test_there_are_three_hundred_cases() -> None:
    assert len(CASES) >= 300
    assert len({(case.source, case.what) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("source", SOURCES)
def test_damaged_inputs_are_named_and_skipped(source: str, tmp_path: Path) -> None:
    found = {}
    for number, case in enumerate(CASES):
        if case.source == source and (faults := faults_of(case, tmp_path / str(number))):
            found[case.what] = faults
    assert not found, "\n".join(f"{what}: {faults}" for what, faults in found.items())


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"labels": 5}', b'{"labels": [["x"]]}'])
def test_folder_with_damaged_labels_is_refused(content: bytes, tmp_path: Path) -> None:
    damaged_data.start("folder", tmp_path / "set")
    (tmp_path / "set" / "dataset.json").write_bytes(content)
    for on_error in ("fail", "skip"):
        with pytest.raises(UserError, match=r"data\.path .*dataset\.json") as caught:
            load_table(DataSettings(source="folder", path=tmp_path / "set", on_error=on_error))
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("source", SOURCES)
def test_source_without_a_valid_image_is_refused(source: str, tmp_path: Path) -> None:
    for number, case in enumerate([case for case in CASES if case.source == source][:5]):
        place = tmp_path / str(number)
        (place / "class-1").mkdir(parents=True)
        case.add(place)
        with pytest.raises(UserError, match="no valid image"):
            load_table(DataSettings(source=source, path=place, on_error="skip"))


def test_all_damaged_images_are_counted(tmp_path: Path) -> None:
    damaged_data.start("folder", tmp_path / "set")
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / "set" / "class-1" / name).write_bytes(b"no image")
    with pytest.raises(
        UserError, match=r"/a\.png is not .*; so it is with 2 more, such as .*/b\.png; mend or remove them"
    ):
        load_table(DataSettings(source="folder", path=tmp_path / "set"))


def test_file_that_cannot_be_read_now_is_not_skipped(tmp_path: Path) -> None:
    damaged_data.start("folder", tmp_path / "set")
    (tmp_path / "set" / "class-1" / "odd.png").symlink_to("/proc/self/mem")  # reading it gives an I/O error
    with pytest.raises(UserError, match=r"odd\.png cannot be read now \(Input/output error\); try again"):
        load_table(DataSettings(source="folder", path=tmp_path / "set", on_error="skip"))


@pytest.mark.parametrize("source", ["zip", "parquet"])
def test_lack_of_open_files_is_not_damage(source: str, tmp_path: Path) -> None:
    damaged_data.start(source, tmp_path / "set")
    settings = DataSettings(source=source, path=next((tmp_path / "set").iterdir()), on_error="skip")
    load_table(settings)
    with at_most(resource.RLIMIT_NOFILE, 3), pytest.raises(UserError, match=r"now \(.*[Tt]oo many open files.*\); try"):
        list_source(settings)


DECODE_IN_64_MIB = """
import resource, sys
from pathlib import Path
from gfgw_prod.data.images import Rules
picture = Path(sys.argv[1]).read_bytes()
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 26),) * 2)
Rules().decode(picture)
"""


def test_lack_of_memory_is_not_damage(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(image_files.png(np.zeros((1, 5000, 5000), dtype=np.uint8)))
    # A process of its own has no memory from before that it could use again.
    command = [sys.executable, "-c", DECODE_IN_64_MIB, str(tmp_path / "large.png")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert re.search(r"UserError: data\.path: an image cannot be read now \(MemoryError\)", found.stderr)
