"""The first word of a node's ranks goes to one of them, at each start anew."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gfgw_prod.resilience import first_word

RANK = "from gfgw_prod.resilience import first_word; print(first_word.taken(otherwise=False))"


def ask_at_once(ranks: int) -> list[str]:
    asked = [subprocess.Popen([sys.executable, "-c", RANK], stdout=subprocess.PIPE, text=True) for _ in range(ranks)]
    return [rank.communicate()[0].strip() for rank in asked]


def test_one_rank_of_each_start_has_it() -> None:
    for _ in range(2):
        first_word.offer()
        assert sorted(ask_at_once(3)) == ["False", "False", "True"]
    first_word.offer()
    first_word.offer()  # nobody took it meanwhile: there is still one
    assert [first_word.taken(otherwise=True) for _ in range(2)] == [True, False]


@pytest.mark.parametrize("place", [None, "/proc/1/fd/no-such", "/dev/null"])
@pytest.mark.parametrize("otherwise", [True, False])
def test_who_speaks_where_nobody_offers_it(monkeypatch: pytest.MonkeyPatch, place: str | None, otherwise: bool) -> None:
    if place is None:
        monkeypatch.delenv(first_word.PLACE, raising=False)
    else:
        monkeypatch.setenv(first_word.PLACE, place)
    assert first_word.taken(otherwise=otherwise) is otherwise
