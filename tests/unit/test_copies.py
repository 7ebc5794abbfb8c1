"""Every line that tests of processes change stands exactly once where they look for it."""

from __future__ import annotations

import pytest

from ..process import copies, runs


@pytest.mark.parametrize("line", copies.ALL, ids=lambda line: line.module)
def test_line_to_change_stands_once_in_its_module(line: copies.Line) -> None:
    assert (runs.ROOT / "gfgw_prod" / line.module).read_text(encoding="utf-8").count(line.text) == 1
