"""Checkpoints: written whole, verified file by file, read back bit by bit."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from gfgw_prod.checkpoint.finding import checkpoints_in
from gfgw_prod.checkpoint.local_storage import LocalStorage
from gfgw_prod.checkpoint.manifest import FORMAT, encode
from gfgw_prod.checkpoint.staging import Stage
from gfgw_prod.checkpoint.storage import MANIFEST
from gfgw_prod.distributed.world import World
from gfgw_prod.process.exit_codes import NoProgressError, UserError
from gfgw_prod.weights.digest import weights_digest

from ..checkpoints import ALONE, FACTS, Keeper, assert_holds, choose, names, state, steps


def test_saved_tensors_come_back_bit_by_bit(keeper: Keeper) -> None:
    first, second = checkpoints_in(keeper.storage)
    assert [(c.step, c.images, c.manifest["config"]) for c in (first, second)] == [
        (1, 1000, {"seed": 1}),
        (2, 2000, {"seed": 1}),
    ]
    assert_holds(first, 1)
    assert_holds(second, 2)
    assert first.problem() is None


def test_tensors_are_chosen_by_prefix(keeper: Keeper) -> None:
    found = checkpoints_in(keeper.storage)[1].read_tensors("generator.", "ema.")
    assert found.keys() == {"generator.weight", "ema.weight"}
    assert torch.equal(found["ema.weight"], state(2)["ema.weight"])


def test_torchs_own_tool_turns_a_checkpoint_into_one_file_of_plain_tensors(keeper: Keeper, tmp_path: Path) -> None:
    dcp_to_torch_save(Path(str(keeper.storage)) / checkpoints_in(keeper.storage)[1].name, tmp_path / "whole.pt")
    read = torch.load(tmp_path / "whole.pt", weights_only=True)
    assert read.keys() == state(2).keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in state(2).items())


def test_manifest_lists_every_file(keeper: Keeper) -> None:
    found = checkpoints_in(keeper.storage)[0]
    assert set(keeper.storage.names(found.name)) == {*found.manifest["files"], MANIFEST}


def test_state_may_change_while_its_copy_is_written(keeper: Keeper) -> None:
    changing = state(3)
    keeper.start(3, changing)
    for tensor in changing.values():
        tensor.zero_()
    keeper.saver.join()
    assert_holds(choose(keeper.storage)[0], 3)


def test_saves_reuse_the_buffers() -> None:
    stage = Stage(ALONE)
    first = {name: tensor.data_ptr() for name, tensor in stage.copy(state(1)).items()}
    again = stage.copy(state(2))
    assert {name: tensor.data_ptr() for name, tensor in again.items()} == first
    assert torch.equal(again["bank.rows"], state(2)["bank.rows"])


def test_constant_tensors_are_not_copied() -> None:
    stage, whole = Stage(ALONE, {"bank.rows"}), state(1)
    stage.preallocate(whole)
    copied = stage.copy(whole)
    assert [name for name in whole if copied[name].data_ptr() == whole[name].data_ptr()] == ["bank.rows"]
    assert torch.equal(whole["bank.rows"], state(1)["bank.rows"])


def test_ranks_share_replicated_tensors() -> None:
    whole = {f"{index}": torch.zeros(size) for index, size in enumerate((50, 30, 30, 20, 10))}
    parts = [Stage(World(rank, 3, torch.device("cpu"))).copy(whole) for rank in range(3)]
    assert sorted(name for part in parts for name in part) == sorted(whole)
    assert max(sum(tensor.numel() for tensor in part.values()) for part in parts) <= 50


def test_one_save_is_in_flight_at_a_time(keeper: Keeper) -> None:
    for step in range(3, 9):
        keeper.start(step)
        assert [thread.name for thread in threading.enumerate()].count("save") <= 1
    keeper.saver.finish()
    assert steps(keeper.storage)[-1] == 8


def test_saved_step_is_left_as_it_is(keeper: Keeper) -> None:
    keeper.start(2, state(99))
    keeper.saver.join()
    assert_holds(choose(keeper.storage)[0], 2)
    assert keeper.saver.saved_step == 2


def test_end_of_a_run_leaves_checkpoints_and_nothing_else(keeper: Keeper) -> None:
    keeper.start(3)
    keeper.saver.finish()
    assert keeper.storage.names() == ["step-00000001", "step-00000002", "step-00000003"]


@pytest.mark.parametrize("change", ["shape", "name"])
def test_another_architecture_is_refused_by_tensor(keeper: Keeper, change: str) -> None:
    other = {"generator.weight": torch.zeros(3, 8)} if change == "shape" else {"generator.bias": torch.zeros(8)}
    with pytest.raises(UserError, match=r"another architecture: generator\."):
        checkpoints_in(keeper.storage)[1].load(other, ALONE)


def test_checkpoint_of_another_format_is_refused_by_name(keeper: Keeper) -> None:
    for number in (1, FORMAT - 1, FORMAT + 1):
        manifest = {**checkpoints_in(keeper.storage)[-1].manifest, "format": number}
        keeper.storage.write(f"step-00000002/{MANIFEST}", encode(manifest))
        with pytest.raises(UserError, match=rf"step-00000002 is of format {number}, .* reads format {FORMAT}"):
            choose(keeper.storage)
    keeper.storage.write(f"step-00000002/{MANIFEST}", b'{"format": 1, "step": 2, "files": {}}')  # as it was written
    with pytest.raises(UserError, match=r"step-00000002 is of format 1"):
        choose(keeper.storage)
    assert names(keeper) == ["step-00000001", "step-00000002"]


def test_run_without_a_good_checkpoint_does_not_start_over(keeper: Keeper) -> None:
    for name in names(keeper):
        keeper.storage.write(f"{name}/{MANIFEST}", b"")
    for _ in range(2):  # the first attempt has changed nothing
        with pytest.raises(UserError, match=r"no checkpoint in .* is good \(step-00000002: manifest\.json is unread"):
            choose(keeper.storage)
    for name in names(keeper):
        keeper.storage.quarantine(name)
    with pytest.raises(UserError, match=r"no checkpoint in .* is good"):
        choose(keeper.storage)


def test_new_run_has_none(tmp_path: Path) -> None:
    assert choose(LocalStorage(tmp_path)) == (None, [])
    assert choose(LocalStorage(tmp_path / "nothing")) == (None, [])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_unfinished_save_is_no_checkpoint_and_is_removed(keeper: Keeper) -> None:
    token = keeper.storage.claim()
    dcp.save(state(), storage_writer=dcp.FileSystemWriter(f"{keeper.storage}/.writing-{token}/x"), no_dist=True)
    assert steps(keeper.storage) == [1, 2]
    Keeper(keeper.storage.root)
    assert not keeper.storage.exists(f".writing-{token}")
    assert steps(keeper.storage) == [1, 2]


def test_writer_that_wakes_up_late_is_fenced_off(keeper: Keeper) -> None:
    later = Keeper(keeper.storage.root, keep=5)
    later.save(3)
    with pytest.raises(UserError, match=r"process \d+ on .* has taken over"):
        keeper.save(4)
    assert steps(keeper.storage) == [1, 2, 3]


@pytest.mark.parametrize("remade", [False, True])
def test_storage_that_vanishes_under_a_run_is_said_to_have_vanished(tmp_path: Path, remade: bool) -> None:
    keeper = Keeper(tmp_path / "ck", max_failures=2)
    keeper.save(1)
    shutil.rmtree(tmp_path / "ck")
    if remade:
        (tmp_path / "ck").mkdir()
    keeper.save(2)
    with pytest.raises(NoProgressError, match="2 checkpoints in a row could not be saved; none is left in"):
        keeper.save(3)
    assert len(keeper.lines) == 2
    assert not [line for line in keeper.lines if "taken over" in line]
    assert not remade or "is empty or gone" in keeper.lines[0]
    assert not list(tmp_path.glob("ck/*"))


def test_saves_succeed_again_when_the_volume_is_back(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "ck", max_failures=2)
    keeper.save(1)
    for step in (2, 4):
        (tmp_path / "ck").rename(tmp_path / "away")
        keeper.save(step)
        (tmp_path / "away").rename(tmp_path / "ck")
        keeper.save(step + 1)
    assert steps(keeper.storage) == [1, 3, 5]


def test_claim_that_somebody_removed_is_said_to_be_gone(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    keeper.save(1)
    for claim in tmp_path.glob(".writing-*"):
        shutil.rmtree(claim)
    with pytest.raises(UserError, match=r"the claim on .* is gone: .*; this process stops"):
        keeper.save(2)
    assert steps(keeper.storage) == [1]


def test_writer_that_is_fenced_off_during_a_save_commits_nothing(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, keep=50)
    large = state(0, rows=200_000)  # 13 MB: takes a while
    in_time = 0
    for number in range(10):
        keeper.start(number, large)
        successor = Keeper(tmp_path, keep=50)
        at_claim = steps(successor.storage)
        in_time += number not in at_claim
        # The claim may have come after the save in flight, but not after the next.
        with pytest.raises(UserError, match="taken over"):
            keeper.save(100 + number, rows=200_000)
        assert steps(successor.storage) == at_claim
        keeper = successor
    assert in_time


def test_digest_is_of_names_shapes_and_bits() -> None:
    weights: dict[str, Tensor] = state()
    backwards = dict(reversed(list(weights.items())))
    moved = weights | {"ema.weight": weights["ema.weight"].clone()}
    moved["ema.weight"][0, 0] = torch.nextafter(moved["ema.weight"][0, 0], torch.tensor(9.0))
    others = [
        moved,
        weights | {"ema.weight": weights["ema.weight"].view(8, 16)},
        {"other" if name == "bank.rows" else name: tensor for name, tensor in weights.items()},
    ]
    assert weights_digest(backwards) == weights_digest(weights)
    assert len({weights_digest(other) for other in others} | {weights_digest(weights)}) == 4


def test_facts_are_what_a_manifest_must_say(keeper: Keeper) -> None:
    assert checkpoints_in(keeper.storage)[0].manifest.keys() >= FACTS.keys()
