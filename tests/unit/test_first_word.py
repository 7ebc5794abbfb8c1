"""The first word of a node's ranks goes to one of them, at each start anew."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gfgw_prod.process import first_word

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the word is offered through /proc")
RANK = "from gfgw_prod.process.first_word import say; say('a word', otherwise={otherwise})"
# What a rank starts has the rank's environment, and another parent.
CHILD = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', sys.argv[1]]).returncode)"


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> str:
    """Where this process, a launcher now, offers the word."""
    monkeypatch.setenv(first_word.PLACE, "")  # what is there now comes back: other tests start processes, too
    pipe = first_word._pipe.__wrapped__()  # one of the test's own
    monkeypatch.setattr(first_word, "_pipe", lambda: pipe)
    return os.environ[first_word.PLACE]


def said(place: str, ranks: int = 1, *, otherwise: bool = False, of_a_child: bool = False) -> list[str]:
    """What ranks that have a reason at the same time say."""
    script = RANK.format(otherwise=otherwise)
    command = [sys.executable, "-c", *([CHILD] if of_a_child else []), script]
    surroundings = os.environ | {first_word.PLACE: place}
    asked = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=surroundings) for _ in range(ranks)]
    return sorted(rank.communicate()[1].strip() for rank in asked)


def test_one_rank_of_each_start_has_it(place: str) -> None:
    for _ in range(2):
        first_word.offer()
        assert said(place, 3) == ["", "", "a word"]
    first_word.offer()
    first_word.offer()  # nobody took it meanwhile: there is still one
    assert [said(place, otherwise=True) for _ in range(2)] == [["a word"], [""]]


def test_what_a_rank_starts_does_not_take_it(place: str) -> None:
    first_word.offer()
    assert said(place, of_a_child=True) == [""]
    assert said(place, of_a_child=True, otherwise=True) == ["a word"]
    assert said(place) == ["a word"]


@pytest.mark.parametrize("nowhere", ["", f"/proc/{os.getpid()}/fd/no-such", "/dev/null"], ids=["", "closed", "null"])
@pytest.mark.parametrize("otherwise", [True, False])
def test_who_speaks_where_nobody_offers_it(nowhere: str, otherwise: bool) -> None:
    assert said(nowhere, otherwise=otherwise) == ["a word" if otherwise else ""]
