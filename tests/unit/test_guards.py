"""Going on with a run: what may change and what may not."""

import copy
from typing import Any

import pytest

from gfgw_prod.resilience.exit_codes import UserError
from gfgw_prod.resilience.guards import FREE, flatten, refuse_changes
from gfgw_prod.settings_io import resolve, setting_names


@pytest.fixture
def facts() -> dict[str, Any]:
    return {"config": resolve({}).model_dump(mode="json"), "data_fingerprint": "abc", "frozen_weights": ["def"]}


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
    refuse_changes(copy.deepcopy(facts), facts)


FREE_CHANGES = [
    ("run.dir", "elsewhere"),
    ("train.total_kimg", 5.0),
    ("checkpoint.keep", 9),
    ("distributed.strategy", "fsdp"),
    ("telemetry.prometheus_port", 9000),
    ("telemetry.sample_grid", 3),
]


@pytest.mark.parametrize(("name", "value"), FREE_CHANGES)
def test_settings_that_change_no_weight_are_free(facts: dict[str, Any], name: str, value: object) -> None:
    refuse_changes(facts, changed(facts, name, value))


BOUND_CHANGES = [
    ("seed", 1),
    ("run.threads", 2),
    ("train.batch_size", 512),
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
        refuse_changes(facts, changed(facts, name, value))
    message = str(caught.value)
    assert f"{name} {flatten(facts['config'])[name]!r} -> {value!r}" in message
    assert "\n" not in message


def test_every_difference_is_named(facts: dict[str, Any]) -> None:
    other = changed(changed(facts, "seed", 1), "optimizer.lr", 1.0) | {"data_fingerprint": "xyz"}
    with pytest.raises(UserError, match=r"optimizer\.lr.*seed.*the data set itself"):
        refuse_changes(facts, other)


def test_setting_of_another_version_is_named(facts: dict[str, Any]) -> None:
    older = copy.deepcopy(facts)
    del older["config"]["train"]["cell_size"]
    with pytest.raises(UserError, match=r"train\.cell_size None -> 32"):
        refuse_changes(older, facts)


def test_free_settings_exist() -> None:
    assert set(setting_names()) >= FREE


def test_other_frozen_weights_are_refused(facts: dict[str, Any]) -> None:
    other = copy.deepcopy(facts) | {"frozen_weights": ["other"]}
    with pytest.raises(UserError, match="frozen networks"):
        refuse_changes(other, facts)
