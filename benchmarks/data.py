"""Speed of packing, of reading random rows of a large pack, and the share of time that steps wait for data."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gfgw_prod.data.decoding import list_source
from gfgw_prod.data.packing import pack
from gfgw_prod.data.sources import load_table
from gfgw_prod.settings.data import DataSettings

IMAGES, MANY = 60_000, 1_000_000
ROWS, READS, READS_FROM_DISK = 256, 200, 20
TRIALS = 3
NETWORK = ("--generator.model-channels", "16", "--generator.num-blocks", "1", "--generator.attention-resolutions", "[]")
RUN = (
    "--train.batch-size",
    "128",
    "--train.cell-size",
    "64",
    "--features.extractor",
    "pixels",
    "--telemetry.progress",
    "off",
)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="gfgw-data-") as scratch:
        directory = Path(scratch)
        archive = _archive(directory / "images.zip")
        _packing(archive, directory)
        _waiting(directory)
        _reading(directory)


def _archive(path: Path) -> Path:
    """An archive of 60,000 PNG files of 32x32: patches of two photographs, made different by an offset."""
    patches = load_table(DataSettings(source="photos")).images.numpy().transpose(0, 2, 3, 1)
    with zipfile.ZipFile(path, "w") as archive:
        for row in range(IMAGES):
            written = io.BytesIO()
            Image.fromarray(patches[row % len(patches)] + np.uint8(row // len(patches))).save(written, format="PNG")
            archive.writestr(f"{row:06d}.png", written.getvalue())
        labels = [[f"{row:06d}.png", row % 10] for row in range(IMAGES)]
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    return path


def _packing(archive: Path, directory: Path) -> None:
    """Compare packing with a loop that only decodes. Packing also lists, checks, hashes and writes."""
    bare: list[tuple[float, float]] = []
    packed: dict[int, list[tuple[float, float]]] = {0: [], os.cpu_count() or 1: []}
    for trial in range(TRIALS):
        clock = _Clock()
        with zipfile.ZipFile(archive) as file:
            names = sorted(name for name in file.namelist() if name.endswith(".png"))
            for name in names:
                np.asarray(Image.open(io.BytesIO(file.read(name))).convert("RGB"))
        bare.append(clock.read())
        for workers, took in packed.items():
            clock = _Clock()
            out = directory / f"pack-{workers}-{trial}"
            if workers == 0:
                listing = list_source(DataSettings(source="zip", path=archive))
                pack(listing, out)
            else:  # the whole command, with its start
                source = ("--data.source", "zip", "--data.path", str(archive), "--workers", str(workers))
                command = [sys.executable, "-m", "gfgw_prod", "pack", str(out), *source]
                subprocess.run(command, check=True, capture_output=True)
            took.append(clock.read())
    print(
        f"{IMAGES:,} PNG files of 32x32 in an archive; medians of {TRIALS}; speed over the loop's, by wall and CPU time"
    )
    for what, took in {
        "bare decode loop of Pillow": bare,
        **{f"gfgw pack, {n} workers" if n else "packing in one process": packed[n] for n in packed},
    }.items():
        wall, cpu = ([one[i] / other[i] for one, other in zip(bare, took, strict=True)] for i in (0, 1))
        rate = IMAGES / statistics.median(seconds for seconds, _ in took)
        print(f"  {what:<28}{rate:>8,.0f} images/s{statistics.median(wall):>7.2f}{statistics.median(cpu):>7.2f}")


class _Clock:
    """Wall and CPU time of this process and of the child processes that have ended."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), self._cpu()

    def read(self) -> tuple[float, float]:
        """Wall and CPU seconds since the clock was made."""
        return time.perf_counter() - self._start[0], self._cpu() - self._start[1]

    @staticmethod
    def _cpu() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(each.ru_utime + each.ru_stime for each in used)


def _waiting(directory: Path) -> None:
    cases = {
        "digits": (),
        "60,000 images of 32x32": ("--data.source", "packed", "--data.path", str(directory / "pack-0-0")),
    }
    for number, (name, source) in enumerate(cases.items()):
        run = directory / f"run-{number}"
        scope = ("--transport.scope", "full") if not source else ("--transport.scope", "subset")
        length = ("--train.total-kimg", "12.8" if not source else "1.28", "--telemetry.log-every-kimg", "0.256")
        options = ("--run.dir", str(run), *NETWORK, *RUN, *scope, *length, "--generator.channel-mult", "[1,2]")
        command = [sys.executable, "-m", "gfgw_prod", "train", *options, *source]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        records = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
        found = [
            (each["speed/data_wait_ratio"], each["speed/step_seconds"])
            for each in records
            if "speed/step_seconds" in each
        ][1:]
        share, seconds = (statistics.median(each) for each in zip(*found, strict=True))
        print(f"{name}: steps of {1e3 * seconds:.1f} ms wait for data {share:.2%} of the time")


def pack_of_noise(directory: Path, rows: int, shape: tuple[int, int, int]) -> Path:
    """Make a pack of random bytes directly."""
    from gfgw_prod.data.packs import Pack, Shard, fingerprint_of, sha256_of

    directory.mkdir()
    numbers, digest = np.random.default_rng(0), hashlib.sha256()
    labels = np.arange(rows) % 10
    (directory / "labels.bin").write_bytes(labels.astype("<i8").tobytes())
    per_shard = (1 << 28) // int(np.prod(shape))
    shards = []
    for number, first in enumerate(range(0, rows, per_shard)):
        count, name = min(per_shard, rows - first), f"images-{number:05d}.bin"
        content = numbers.integers(0, 256, (count, *shape), dtype=np.uint8)
        (directory / name).write_bytes(content.data)
        digest.update(content.data)
        shards.append(Shard(name, count, sha256_of(directory / name)))
    known = fingerprint_of(digest, labels, shape, 255, 10)
    Pack(
        directory, shape, rows, 255, 10, known, per_shard, tuple(shards), sha256_of(directory / "labels.bin"), "", ()
    ).write()
    return directory


def _reading(directory: Path) -> None:
    settings = DataSettings(source="packed", path=pack_of_noise(directory / "large", MANY, (3, 32, 32)))
    table, draws = load_table(settings), torch.Generator().manual_seed(0)
    for name, reads in (("in the page cache", READS), ("from the disk", READS_FROM_DISK)):
        took = []
        for _ in range(reads):
            ids = torch.randint(0, MANY, (ROWS,), generator=draws)
            if name == "from the disk":
                del table  # mapped pages stay in memory
                _drop(directory / "large")
                table = load_table(settings)
            started = time.perf_counter()
            table.rows(ids)
            took.append(1e3 * (time.perf_counter() - started))
        took.sort()
        print(
            f"{ROWS} random rows of {MANY:,} packed images of 32x32, {name}: median {statistics.median(took):.1f} ms, "
            f"95 % within {took[int(0.95 * reads)]:.1f} ms"
        )


def _drop(directory: Path) -> None:
    """Drop the shards from the page cache."""
    for file in directory.glob("images-*"):
        number = os.open(file, os.O_RDONLY)
        os.fsync(number)  # pages not written yet stay too
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(number)
