"""All damage to a checkpoint is noticed, and no code in one is ever run."""

from __future__ import annotations

import copyreg
import json
import os
import pickle
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, ChunkStorageMetadata, Metadata

from gfgw_prod.checkpoint.choosing import quarantined
from gfgw_prod.checkpoint.finding import checkpoints_in
from gfgw_prod.checkpoint.local_storage import LocalStorage
from gfgw_prod.checkpoint.manifest import METADATA, decode, encode
from gfgw_prod.checkpoint.storage import MANIFEST
from gfgw_prod.weights.unpickling import DamagedError, read_metadata

from ..checkpoints import Keeper, assert_holds, choose

DAMAGES = 500


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with checkpoints of steps 1 and 2."""
    root = tmp_path_factory.mktemp("whole")
    Keeper(root).save(1, 2)
    return root


def flip_a_bit(file: Path, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def truncate(file: Path, chance: random.Random) -> None:
    os.truncate(file, chance.randrange(file.stat().st_size))


def delete(file: Path, chance: random.Random) -> None:
    file.unlink()


def zero_the_tail(file: Path, chance: random.Random) -> None:
    content = file.read_bytes()
    kept = chance.randrange(len(content.rstrip(b"\0")))
    file.write_bytes(content[:kept].ljust(len(content), b"\0"))


def swap_with_another(file: Path, chance: random.Random) -> None:
    others = sorted({*file.parent.iterdir(), *(file.parent.parent / "step-00000001").iterdir()} - {file})
    other = chance.choice([other for other in others if other.read_bytes() != file.read_bytes()])
    mine = file.read_bytes()
    file.write_bytes(other.read_bytes())
    if other.parent == file.parent:
        other.write_bytes(mine)


def append(file: Path, chance: random.Random) -> None:
    file.write_bytes(file.read_bytes() + chance.randbytes(1 + chance.randrange(100)))


def edit_the_manifest(file: Path, chance: random.Random) -> None:
    path = file.parent / MANIFEST
    manifest = json.loads(path.read_text())
    if chance.random() < 0.3:
        del manifest[chance.choice(sorted(manifest))]
    elif chance.random() < 0.5:
        manifest[chance.choice(["step", "images", "format", "saved_at"])] += chance.choice([-1, 1, 10**6])
    else:
        entry = manifest["files"][chance.choice(sorted(manifest["files"]))]
        entry.update(chance.choice([{"bytes": entry["bytes"] + 1}, {"blake3": "0" * 64}]))
    path.write_text(json.dumps(manifest))


KINDS = (flip_a_bit, truncate, delete, zero_the_tail, swap_with_another, append, edit_the_manifest)


@pytest.mark.slow
def test_five_hundred_damages_are_five_hundred_fallbacks(whole: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    for number in range(DAMAGES):
        root = shutil.copytree(whole, tmp_path / str(number))
        damage = chance.choice(KINDS)
        file = chance.choice(sorted((root / "step-00000002").iterdir()))
        damage(file, chance)
        found, lines = choose(LocalStorage(root))
        told = f"{number}: {damage.__name__} of {file.name}"
        assert found is not None, told
        assert found.step == 1, told
        assert len(lines) == 1, told
        assert lines[0].startswith("checkpoint step-00000002 is damaged ("), told
        (kept,) = [name for name in LocalStorage(root).names() if name.startswith("damaged-step-00000002-")]
        assert kept in lines[0], told
        shutil.rmtree(root)


def test_step_of_a_damaged_checkpoint_is_saved_again(whole: Path, tmp_path: Path) -> None:
    root = shutil.copytree(whole, tmp_path / "root")
    truncate(max((root / "step-00000002").glob("*.distcp")), random.Random(0))
    keeper = Keeper(root)
    assert_holds(choose(keeper.storage)[0], 1)
    keeper.save(2)
    assert_holds(choose(keeper.storage)[0], 2)
    assert len(quarantined([keeper.storage])) == 1


class Asks:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Extension:
    """Pickles as an entry of copyreg's table, which names no class in the file."""

    def __reduce__(self) -> Any:
        return (Extension, ())


def corpus(proof: Path) -> dict[str, bytes]:
    """Malicious pickles, most of which would create the file ``proof``, by the name in their refusal."""
    command = f"touch {proof}"
    source = f"open({str(proof)!r}, 'w').close()"
    account, dotted = b"torch.distributed.checkpoint.metadata", b"Metadata.__init__.__globals__"
    return {
        "posix.system": pickle.dumps(Asks(os.system, command)),
        "builtins.eval": pickle.dumps(Asks(eval, source)),
        "builtins.exec": pickle.dumps(Asks(exec, source)),
        "builtins.getattr": b"cbuiltins\ngetattr\n(ctorch\nSize\nS'__class__'\ntR.",
        "builtins.__import__": pickle.dumps(Asks(__import__, "os")),
        "subprocess.Popen": b"csubprocess\nPopen\n(S'touch'\ntR.",
        "torch.load": f"ctorch\nload\n(S'{proof}'\ntR.".encode(),
        "torch.serialization.load": f"ctorch.serialization\nload\n(S'{proof}'\ntR.".encode(),
        "torch.hub.load": b"ctorch.hub\nload\n(S'a/b'\nS'c'\ntR.",
        "pickle.loads": b"cpickle\nloads\n(S'x'\ntR.",
        "importlib.import_module": b"cimportlib\nimport_module\n(S'os'\ntR.",
        # A dotted name: it leads from an allowed class to its module's globals.
        dotted.decode(): b"\x80\x04"
        + b"".join(b"\x8c" + bytes([len(each)]) + each for each in (account, dotted))
        + b"\x93.",
        # An allowed class first.
        "os.system": f"ctorch\nSize\n((lp0\ntR0cos\nsystem\n(S'{command}'\ntR.".encode(),
        "an outside object": b"\x80\x02X\x01\x00\x00\x00aQ.",
    }


NAMES = sorted(corpus(Path("/nowhere")))


@pytest.mark.parametrize("name", NAMES)
def test_metadata_that_carries_code_is_refused_by_name_and_nothing_is_run(tmp_path: Path, name: str) -> None:
    proof = tmp_path / "proof"
    content = corpus(proof)[name]
    with pytest.raises(DamagedError, match=name.replace(".", r"\.") + ".* nothing was run"):
        read_metadata(content)
    assert not proof.exists()


@pytest.mark.parametrize("name", NAMES)
def test_metadata_that_carries_code_is_skipped_even_if_its_hash_is_listed(
    whole: Path, tmp_path: Path, name: str
) -> None:
    proof, root = tmp_path / "proof", shutil.copytree(whole, tmp_path / "root")
    content = corpus(proof)[name]
    storage = LocalStorage(root)
    storage.write(f"step-00000002/{METADATA}", content)
    manifest = checkpoints_in(storage)[1].manifest
    manifest["files"][METADATA] = {"bytes": len(content), "blake3": blake3(content).hexdigest()}
    storage.write(f"step-00000002/{MANIFEST}", encode(manifest))
    found, lines = choose(storage)
    assert_holds(found, 1)
    assert name in lines[0]
    assert not proof.exists()


def test_malicious_pickles_run_with_a_plain_unpickler(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    for name in ("posix.system", "builtins.eval", "builtins.exec", "os.system"):
        proof.unlink(missing_ok=True)
        pickle.loads(corpus(proof)[name])
        assert proof.exists(), name


def test_extension_codes_are_refused() -> None:
    code = 0xF7
    copyreg.add_extension(Extension.__module__, Extension.__qualname__, code)
    try:
        with pytest.raises(DamagedError, match="Extension"):
            read_metadata(b"\x80\x02\x82" + bytes([code]) + b")R.")
    finally:
        copyreg.remove_extension(Extension.__module__, Extension.__qualname__, code)


@pytest.mark.parametrize("content", [b"", b"\x80", b"garbage", b"N.", pickle.dumps({"a": 1}), b"(" * 1000])
def test_invalid_metadata_is_refused(content: bytes) -> None:
    with pytest.raises(DamagedError):
        read_metadata(content)


class Attribute:
    """Pickles any attribute as Python 3.11.2 pickles a member of an enumeration."""

    def __init__(self, owner: Any, name: str):
        self.owner, self.name = owner, name

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.owner, self.name)


def test_members_of_enumerations_are_read_as_every_python_pickles_them() -> None:
    member = Attribute(_MEM_FORMAT_ENCODING, "TORCH_CONTIGUOUS_FORMAT")
    found = read_metadata(pickle.dumps(Metadata({}, planner_data=member)))
    assert found.planner_data is _MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (_MEM_FORMAT_ENCODING, "__class__"),
        (_MEM_FORMAT_ENCODING, "no member"),
        (Metadata, "__init__"),
        ("text", "join"),
    ],
)
def test_no_other_attribute_is_read_by_name(owner: Any, name: str) -> None:
    with pytest.raises(DamagedError, match=r"builtins\.getattr .* nothing was run"):
        read_metadata(pickle.dumps(Metadata({}, planner_data=Attribute(owner, name))))


def test_metadata_that_would_change_a_class_is_refused_and_changes_nothing() -> None:
    account = b"torch.distributed.checkpoint.metadata"
    before = dict(vars(ChunkStorageMetadata))
    content = b"c" + account + b"\nChunkStorageMetadata\n(N}S'__setstate__'\nc" + account + b"\nStorageMeta\nstb."
    with pytest.raises(DamagedError, match="changes a class"):
        read_metadata(content)
    assert dict(vars(ChunkStorageMetadata)) == before


def test_metadata_that_would_fill_the_memory_is_refused() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DamagedError):
        read_metadata(b"\x80\x02Nr\x00\x00\x00\x04.")  # a memo index of 67 million
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize(
    "edit",
    [
        {"images": "abc"},
        {"saved_at": None},
        {"changes": 5},
        {"config": []},
        {"files": {".metadata": {"bytes": 1, "blake3": "0"}, "../x": {"bytes": 1, "blake3": "0"}}},
        {"files": [1]},
        {"files": {}},
    ],
    ids=str,
)
def test_manifest_with_wrong_types_is_damaged_even_if_its_hash_is_right(whole: Path, edit: dict[str, Any]) -> None:
    manifest = checkpoints_in(LocalStorage(whole))[1].manifest
    with pytest.raises(DamagedError, match=r"lacks required entries|is unreadable"):
        decode(encode({**manifest, **edit}))


@pytest.mark.parametrize("content", [b"", b"[" * 200_000, b"null", b"{}", b'{"blake3": 1e999}', b"\xff"])
def test_invalid_manifest_is_damaged(content: bytes) -> None:
    with pytest.raises(DamagedError):
        decode(content)


def test_metadata_that_names_a_file_the_manifest_does_not_is_refused(whole: Path, tmp_path: Path) -> None:
    storage = LocalStorage(shutil.copytree(whole, tmp_path / "root"))
    content = storage.read(f"step-00000002/{METADATA}")
    inside, outside = b"__0_0.distcp", b"../../pass.t"
    assert content.count(inside) >= 1
    content = content.replace(inside, outside)
    manifest = checkpoints_in(storage)[1].manifest
    manifest["files"][METADATA] = {"bytes": len(content), "blake3": blake3(content).hexdigest()}
    storage.write(f"step-00000002/{METADATA}", content)
    storage.write(f"step-00000002/{MANIFEST}", encode(manifest))
    found, lines = choose(storage)
    assert_holds(found, 1)
    assert "../../pass.t" in lines[0]
