"""The supported versions of Python are the same wherever they are stated."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
from torch import nn

from gfgw_prod.commands.doctor.host import python
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.training import precision

ROOT = Path(__file__).parents[2]
PLACES = ("Makefile", "README.md", ".ci/run", "gfgw_prod/commands/doctor/host.py")


def test_pages_makefile_and_doctor_state_the_range_of_the_package() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    found = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", declared)
    assert found is not None
    first, last = int(found[1]), int(found[2]) - 1
    for place in PLACES:
        stated = re.findall(r"3\.(\d+) to 3\.(\d+)", (ROOT / place).read_text())
        assert stated, place
        assert set(stated) == {(str(first), str(last))}, place
    makefile = (ROOT / "Makefile").read_text()
    assert set(re.findall(r"\(3, (\d+)\) <= sys\.version_info < \(3, (\d+)\)", makefile)) == {(found[1], found[2])}
    searched = re.search(r"for p in (.*) python3;", makefile)
    assert searched is not None
    assert searched[1].split() == [f"python3.{minor}" for minor in range(first, last + 1)]


def test_doctor_accepts_this_python() -> None:
    assert python().state == "ok"


def test_compiling_on_a_python_that_torch_does_not_compile_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "NEWEST_TO_COMPILE", (sys.version_info[0], sys.version_info[1] - 1))
    with pytest.raises(UserError, match=r"^train\.compile true needs Python 3\.\d+ or older .*; use false$"):
        precision.compile_networks([nn.Identity()])
