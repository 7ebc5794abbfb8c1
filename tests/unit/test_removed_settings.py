"""Removed settings: recorded configurations with their only remaining value still load; others are refused."""

from typing import Any

import pytest

from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.reading import resolve
from gfgw_prod.settings.removed import REMOVED, without_removed

OTHER: dict[str, Any] = {"transport.anneal_from": 0.5, "transport.marginal": "semi_relaxed"}


def recorded(name: str, value: Any) -> dict[str, Any]:
    section, _, key = name.partition(".")
    return {section: {key: value}}


@pytest.mark.parametrize("name", REMOVED)
def test_recorded_configuration_with_the_remaining_value_resolves(name: str) -> None:
    assert resolve(without_removed(recorded(name, REMOVED[name]))) == resolve({})


@pytest.mark.parametrize("name", OTHER)
def test_recorded_configuration_with_another_value_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=name):
        resolve(without_removed(recorded(name, OTHER[name])))
