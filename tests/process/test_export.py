"""The command ``export``: the newest good checkpoint as a file for other programs, or one line with the error."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch

from gfgw_prod.checkpoint.finding import find_checkpoints
from gfgw_prod.commands import cli
from gfgw_prod.distributed.cells import random_stream
from gfgw_prod.sampling.pictures import draw_samples
from gfgw_prod.sampling.trained import read_file
from gfgw_prod.weights.digest import weights_digest

from . import runs


@pytest.fixture(scope="module")
def exported(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the reference run's generator in both formats."""
    place = tmp_path_factory.mktemp("exported") / "made" / "on the way"
    home = tmp_path_factory.mktemp("home")
    outcomes = runs.execute_all(
        {
            form: lambda f=form: runs.execute(
                [*runs.GFGW, "export", str(reference), "--format", f, "--out", str(place / f"digits.{f}")],
                {"HOME": str(home), "XDG_CACHE_HOME": ""},
            )
            for form in ("safetensors", "onnx")
        }
    )
    for form, outcome in outcomes.items():
        assert (outcome.code, outcome.stderr) == (0, "")
        assert len(outcome.stdout.splitlines()) == 1
        assert outcome.stdout.startswith(f"{place / f'digits.{form}'}: averaged weights of step {runs.STEPS} ")
    assert {file.name for file in place.iterdir()} == {"digits.safetensors", "digits.onnx"}
    assert not any(home.iterdir()), "a library left files in the home directory"
    return place


def gfgw(*arguments: str) -> None:
    """A command in this process, where torch is imported once; it must succeed."""
    assert cli.main(arguments) == 0


def test_file_holds_the_averaged_weights_of_the_newest_checkpoint(reference: Path, exported: Path) -> None:
    held = read_file(exported / "digits.safetensors")
    [*_, last] = find_checkpoints(reference)
    average = {name.removeprefix("ema."): tensor for name, tensor in last.read_tensors("ema.").items()}
    assert weights_digest(read_file(exported / "digits.safetensors").build().state_dict()) == weights_digest(average)
    assert (held.step, held.images, held.weights) == (runs.STEPS, runs.STEPS * runs.BATCH, "ema")
    assert held.weights_sha256 == runs.digests(reference)[runs.STEPS]
    assert held.config == last.manifest["config"]


def test_graph_makes_the_samples_of_the_checkpoint(exported: Path) -> None:
    images, labels = draw_samples(
        read_file(exported / "digits.safetensors").build(),
        *((1, 8, 8), range(10)),
        count=7,
        seed=0,
        stream="sample",
        device=torch.device("cpu"),
    )
    noise = torch.stack([torch.randn((1, 8, 8), generator=random_stream(0, "sample", i)) for i in range(7)])
    session = onnxruntime.InferenceSession(exported / "digits.onnx", providers=["CPUExecutionProvider"])
    [made] = session.run(None, {"noise": noise.numpy(), "labels": labels.numpy()})
    torch.testing.assert_close(torch.from_numpy(made), images, atol=1e-4, rtol=0)
    described = session.get_modelmeta().custom_metadata_map
    assert described == read_file(exported / "digits.safetensors").metadata


def test_exported_file_samples_and_exports_like_its_run(reference: Path, exported: Path, tmp_path: Path) -> None:
    file = str(exported / "digits.safetensors")
    for place, out in ((file, "from-file"), (str(reference), "from-run")):
        gfgw("sample", place, "--num", "3", "--out", str(tmp_path / out))
    pictures = [
        [each.read_bytes() for each in sorted((tmp_path / out).glob("*.png"))] for out in ("from-file", "from-run")
    ]
    assert pictures[0] == pictures[1]
    assert len(set(pictures[0])) == 3
    gfgw("export", file, "--format", "onnx", "--out", str(tmp_path / "again.onnx"))
    assert (tmp_path / "again.onnx").read_bytes() == (exported / "digits.onnx").read_bytes()


def test_raw_weights_replace_an_older_file(reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "digits.safetensors"
    out.write_text("older")
    (tmp_path / "link").symlink_to(out)
    gfgw("export", str(reference), "--raw", "--format", "safetensors", "--out", str(tmp_path / "link"))
    [*_, last] = find_checkpoints(reference)
    trained = {name.removeprefix("generator."): tensor for name, tensor in last.read_tensors("generator.").items()}
    assert weights_digest(read_file(out).tensors) == weights_digest(trained)
    assert read_file(out).weights == "raw"
    assert (tmp_path / "link").is_symlink()
    gfgw("sample", str(out), "--raw", "--num", "1", "--out", str(tmp_path / "pictures"))


def test_export_passes_over_a_damaged_checkpoint(copy_of_reference: Path, tmp_path: Path) -> None:
    runs.newest_shard(copy_of_reference).write_bytes(b"")
    gfgw("export", str(copy_of_reference), "--format", "safetensors", "--out", str(tmp_path / "g"))
    assert read_file(tmp_path / "g").step == find_checkpoints(copy_of_reference)[-2].step == 4


# Name of the case: arguments ({run} is a whole run, {file} its file, {} a scratch directory), words of the line.
CASES: dict[str, tuple[list[str], list[str]]] = {
    "no run": (["{}/none", "--format", "onnx", "--out", "{}/g"], ["{}/none", "does not exist"]),
    "a name too long for a run": (["x" * 300, "--format", "onnx", "--out", "{}/g"], ["does not exist"]),
    "nothing but a damaged checkpoint": (
        ["{}/damaged", "--format", "safetensors", "--out", "{}/g"],
        ["{}/damaged", "no undamaged checkpoint", "inspect"],
    ),
    "a file that is no generator": (["{}/text", "--format", "onnx", "--out", "{}/g"], ["{}/text", "safetensors"]),
    "averaged weights alone": (["{file}", "--raw", "--format", "onnx", "--out", "{}/g"], ["{file}", "--raw"]),
    "a format nobody knows": (["{run}", "--format", "pickle", "--out", "{}/g"], ["--format", "safetensors", "onnx"]),
    "no format": (["{run}", "--out", "{}/g"], ["--format"]),
    "no file to write": (["{run}", "--format", "onnx"], ["--out"]),
    "out is a directory": (["{run}", "--format", "onnx", "--out", "{}"], ["--out {}", "is a directory"]),
    "out is under a file": (["{run}", "--format", "onnx", "--out", "{}/text/g"], ["--out {}/text/g", "cannot be"]),
    "out is in no place for a file": (["{run}", "--format", "safetensors", "--out", "/proc/g"], ["--out /proc/g"]),
    "out is a device": (["{run}", "--format", "safetensors", "--out", "/dev/null"], ["/dev/null", "regular file"]),
    "out has a name too long": (
        ["{run}", "--format", "safetensors", "--out", "{}/" + "x" * 300],
        ["--out", "too long"],
    ),
    "one argument too many": (["{run}", "--format", "onnx", "--out", "{}/g", "more"], ["'more'"]),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_in_one_line_and_writes_nothing(
    name: str, reference: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "nothing but a damaged checkpoint":
        [*_, last] = find_checkpoints(reference)
        damaged = tmp_path / "damaged" / "checkpoints" / last.name
        damaged.mkdir(parents=True)
        for file in (reference / "checkpoints" / last.name).iterdir():
            (damaged / file.name).write_bytes(file.read_bytes()[: -1 if file.suffix == ".distcp" else None])
    (tmp_path / "text").write_text("no weights")
    before = sorted(tmp_path.rglob("*"))

    def filled(word: str) -> str:
        known = {"{run}": reference, "{file}": exported / "digits.safetensors", "{}": tmp_path}
        for mark, path in known.items():
            word = word.replace(mark, str(path))
        return word

    arguments, words = CASES[name]
    assert cli.main(["export", *map(filled, arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1, printed.err
    assert all(filled(word) in printed.err for word in words), printed.err
    assert sorted(tmp_path.rglob("*")) == before
    assert Path("/dev/null").is_char_device()
