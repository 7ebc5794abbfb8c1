"""Removed settings: configurations with a value that makes no difference still load; others are refused."""

from typing import Any

import pytest

from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.reading import resolve
from gfgw_prod.settings.removed import REMOVED

OTHER: dict[str, Any] = {"generator.exact_boundary": False, "transport.marginal": "semi_relaxed"}


def recorded(name: str, value: Any) -> dict[str, Any]:
    section, _, key = name.partition(".")
    return {section: {key: value}}


ANY = (0.0, 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in REMOVED.items() for value in (ANY if values is None else values)],
)
def test_configuration_with_a_removed_setting_that_makes_no_difference_resolves(name: str, value: Any) -> None:
    assert resolve(recorded(name, value)) == resolve({})


@pytest.mark.parametrize("name", OTHER)
def test_recorded_configuration_with_another_value_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=name):
        resolve(recorded(name, OTHER[name]))
