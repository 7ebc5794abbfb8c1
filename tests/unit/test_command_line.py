"""The command line: quick help, one module per command, one line for an unknown word."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gfgw_prod.commands import cli
from gfgw_prod.process.exit_codes import UserError

HEAVY = "{'torch', 'numpy', 'pydantic', 'yaml'}"


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_help_imports_nothing_heavy(option: str) -> None:
    code = (
        f"import sys; from gfgw_prod.commands import cli; cli.main([{option!r}])\n"
        f"sys.exit(bool({HEAVY} & {{*sys.modules}}))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_options_are_parsed_before_torch_is_imported() -> None:
    code = (
        "import sys; from gfgw_prod.commands import cli\n"
        "for name in cli.COMMANDS: cli.main([name, '--no-such-option'])\n"
        "sys.exit('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0
    assert len(ended.stderr.splitlines()) == len(cli.COMMANDS)


@pytest.mark.parametrize("arguments", [[], ["trian"], ["--train"], [""]])
def test_missing_or_unknown_command_lists_all(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert ", ".join(cli.COMMANDS) in line


def test_tilde_is_the_home_directory_in_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _, options = cli.parse(["sample", "~/run", "--num", "4", "--out", "~/images"])
    assert (options.place, options.out) == (f"{tmp_path}/run", tmp_path / "images")
    with pytest.raises(UserError, match="--out: must be a path of a known home directory"):
        cli.parse(["sample", "~/run", "--out=~nobody-of-this-name/x"])
