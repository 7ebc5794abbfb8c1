"""What may change when a run is resumed, and what may not."""

import copy
import re
from typing import Any

import pytest
import torch

from gfgw_prod.data.sources import Table
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.resilience.same_run import (
    FREE,
    accept_changes,
    accept_rank_differences,
    arithmetic_of,
    require_fit,
    run_facts,
)
from gfgw_prod.settings.nested import flatten
from gfgw_prod.settings.reading import resolve, setting_names


@pytest.fixture
def facts(table: Table) -> dict[str, Any]:
    return run_facts(resolve({}), table, [torch.nn.Linear(2, 2)], torch.device("cpu")) | {"step": 7}


def changed(facts: dict[str, Any], name: str, value: object) -> dict[str, Any]:
    other = copy.deepcopy(facts)
    *sections, key = name.split(".")
    place = other["config"]
    for section in sections:
        place = place[section]
    assert place[key] != value
    place[key] = value
    return other


def test_same_settings_pass(facts: dict[str, Any]) -> None:
    accept_changes(copy.deepcopy(facts), facts)


FREE_CHANGES = [
    ("run.dir", "elsewhere"),
    ("train.total_kimg", 5.0),
    ("checkpoint.keep", 9),
    ("distributed.strategy", "fsdp"),
    ("distributed.shard_ranks", 2),
    ("telemetry.prometheus_port", 9000),
    ("telemetry.sample_grid", 3),
]


@pytest.mark.parametrize(("name", "value"), FREE_CHANGES)
def test_settings_that_change_no_weight_are_free(facts: dict[str, Any], name: str, value: object) -> None:
    accept_changes(facts, changed(facts, name, value))


BOUND_CHANGES = [
    ("seed", 1),
    ("run.threads", 2),
    ("train.cell_size", 64),
    ("optimizer.lr", 1.0),
    ("optimizer.betas", [0.5, 0.9]),
    ("transport.epsilon", 0.5),
    ("distributed.reduction", "fast"),
    ("features.block_rows", 7),
]


@pytest.mark.parametrize(("name", "value"), BOUND_CHANGES)
def test_settings_that_change_the_weights_are_named(facts: dict[str, Any], name: str, value: object) -> None:
    with pytest.raises(UserError) as caught:
        accept_changes(facts, changed(facts, name, value))
    message = str(caught.value)
    assert f"{name} {flatten(facts['config'])[name]!r} -> {value!r}" in message
    assert "\n" not in message


def test_every_difference_is_named(facts: dict[str, Any]) -> None:
    other = changed(changed(facts, "seed", 1), "optimizer.lr", 1.0) | {"data_fingerprint": "xyz"}
    with pytest.raises(UserError, match=r"optimizer\.lr.*seed.*the contents of the data set\)"):
        accept_changes(facts, other)
    with pytest.raises(UserError, match=r"the contents of the data set: data\.image_size None -> 32\)"):
        accept_changes(facts, changed(facts, "data.image_size", 32) | {"data_fingerprint": "xyz"})


def test_setting_of_another_version_is_named(facts: dict[str, Any]) -> None:
    older = copy.deepcopy(facts)
    del older["config"]["train"]["cell_size"]
    with pytest.raises(UserError, match=r"train\.cell_size None -> 32"):
        accept_changes(older, facts)


def test_free_settings_exist() -> None:
    assert set(setting_names()) >= FREE


def test_other_frozen_weights_are_refused(facts: dict[str, Any]) -> None:
    other = copy.deepcopy(facts) | {"frozen_weights": ["other"]}
    with pytest.raises(UserError, match="frozen networks"):
        accept_changes(other, facts)


def test_other_package_version_is_named(facts: dict[str, Any]) -> None:
    older = copy.deepcopy(facts)
    older["packages"]["torch"] = "2.0.0"
    with pytest.raises(UserError, match=re.escape(f"package torch '2.0.0' -> '{facts['packages']['torch']}'")):
        accept_changes(older, facts)


def test_allowed_changes_are_recorded_one_after_the_other(facts: dict[str, Any]) -> None:
    allowed = changed(facts, "run.allow_changes", True)
    second = changed(allowed, "seed", 1)
    assert accept_changes(facts, second) == ["seed 0 -> 1"]
    third = changed(second, "optimizer.lr", 1.0)
    accept_changes(second | {"step": 9}, third)
    assert third["changes"] == [
        {"step": 7, "changes": ["seed 0 -> 1"]},
        {"step": 9, "changes": [f"optimizer.lr {facts['config']['optimizer']['lr']!r} -> 1.0"]},
    ]
    accept_changes(third, later := changed(third, "telemetry.sample_grid", 3))
    assert later["changes"] == third["changes"]


def test_batch_size_cannot_change(facts: dict[str, Any]) -> None:
    other = changed(changed(facts, "run.allow_changes", True), "train.batch_size", 512)
    with pytest.raises(UserError, match=r"has train\.batch_size 256, which cannot change"):
        accept_changes(facts, other)


def test_other_arithmetic_is_named(facts: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"hardware '.+' -> 'NVIDIA A100'"):
        accept_changes(facts, copy.deepcopy(facts) | {"arithmetic": "NVIDIA A100"})


def test_arithmetic_names_the_processor() -> None:
    *model, instructions = arithmetic_of(torch.device("cpu")).split(", ")
    assert instructions == torch.backends.cpu.get_cpu_capability()
    assert "".join(model)


@pytest.mark.parametrize("name", ["MKL_CBWR", "ONEDNN_MAX_CPU_ISA", "DNNL_DEFAULT_FPMATH_MODE", "NVIDIA_TF32_OVERRIDE"])
def test_variable_that_changes_arithmetic_is_compared(
    facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "")
    facts["arithmetic"] = arithmetic_of(torch.device("cpu"))
    monkeypatch.setenv(name, "X")
    now = facts | {"arithmetic": arithmetic_of(torch.device("cpu"))}
    for before, after in ((facts, now), (now, facts)):
        with pytest.raises(UserError, match=f"hardware .*{name}=X'"):
            accept_changes(before, copy.deepcopy(after))


def test_packages_that_compute_nothing_are_not_compared(table: Table) -> None:
    def packages(**sections: dict[str, object]) -> set[str]:
        return set(run_facts(resolve(sections), table, [], torch.device("cpu"))["packages"])

    pixels: dict[str, object] = {"extractor": "pixels"}
    assert packages(features=pixels) == {"gfgw-prod", "torch"}
    assert packages(features={"extractor": "dinov2"}) == {"gfgw-prod", "torch", "timm"}
    assert packages(features={"extractor": "timm", "network": "resnet10t.c3_in1k"}) == {"gfgw-prod", "torch", "timm"}
    assert packages(features=pixels, loss={"lpips": 0.5}) == {"gfgw-prod", "torch", "lpips", "torchvision"}
    assert packages(features=pixels, transport={"backend": "pot"}) == {"gfgw-prod", "torch", "pot"}


def test_rank_that_would_train_other_weights_is_named(facts: dict[str, Any]) -> None:
    other = copy.deepcopy(facts) | {"arithmetic": "NVIDIA H100"}
    assert accept_rank_differences({0: facts, 1: copy.deepcopy(facts)}, facts, step=0) == []
    with pytest.raises(UserError, match=r"rank 2: hardware '.+' -> 'NVIDIA H100'"):
        accept_rank_differences({0: facts, 1: facts, 2: other}, facts, step=0)


def test_rank_that_would_join_another_run_is_refused(facts: dict[str, Any]) -> None:
    run, new = copy.deepcopy(facts), copy.deepcopy(facts)
    with pytest.raises(UserError, match=r"ranks 0 and 2 .*\(seed 0 and 1\)"):
        require_fit(run, changed(new, "seed", 1), 2)
    with pytest.raises(UserError, match=r"rank 2: hardware '.+' -> 'NVIDIA H100'"):
        require_fit(run, new | {"arithmetic": "NVIDIA H100"}, 2)
    require_fit(run, new, 2)
    assert new == run


def test_allowed_mixture_is_recorded_once(facts: dict[str, Any]) -> None:
    allowed = changed(facts, "run.allow_changes", True)
    by_rank = {0: allowed, 1: copy.deepcopy(allowed) | {"data_fingerprint": "xyz"}}
    assert accept_rank_differences(by_rank, allowed, step=3) == ["rank 1: the contents of the data set"]
    accept_rank_differences(by_rank, allowed, step=9)
    assert allowed["changes"] == [{"step": 3, "changes": ["rank 1: the contents of the data set"]}]
