"""Commands of the README and docs/: each is run or is listed with a reason, and none names what is not there."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest
import yaml
from torch.distributed.run import get_args_parser

from gfgw_prod.commands import cli
from gfgw_prod.settings.reading import configuration
from tests import pages

SINGLE = [
    command
    for block in pages.shell_blocks()
    if (block.page, block.heading) not in pages.SCRIPTS and block.page not in pages.ELSEWHERE
    for command in block.commands
]
VARIABLES = set(re.findall(r"^#   ([A-Z_]+) ", (pages.ROOT / "launch" / "elastic.sh").read_text(), re.M))


def test_every_command_is_run_or_accounted_for() -> None:
    accounted = [re.compile(pattern) for pattern in pages.CHECKED]
    for command in SINGLE:
        ways = (command in pages.RUN) + sum(bool(pattern.fullmatch(command)) for pattern in accounted)
        assert ways == 1, f"{command}: add it to RUN or to CHECKED of tests/pages.py"


def test_nothing_is_listed_that_no_page_has() -> None:
    assert set(pages.RUN) <= set(SINGLE)
    assert [pattern for pattern in pages.CHECKED if not any(re.fullmatch(pattern, each) for each in SINGLE)] == []
    assert all(pages.script(*section) for section in pages.SCRIPTS)
    assert all((pages.ROOT / test).is_file() for test in pages.ELSEWHERE.values())


@pytest.mark.parametrize("block", pages.shell_blocks(), ids=lambda block: f"{block.page}: {block.heading}")
def test_blocks_are_valid_shell(block: pages.Block) -> None:
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)


@pytest.mark.parametrize("command", sorted(set(SINGLE)))
def test_programs_options_and_files_of_a_command_are_there(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pages.ROOT)
    words = shlex.split(command)
    while re.match(r"[A-Z_]+=", words[0]):
        assert words.pop(0).partition("=")[0] in VARIABLES
    program, *rest = words
    match program.removeprefix(".venv/bin/"):
        case "gfgw":
            check_gfgw(rest)
        case "torchrun":
            chosen = get_args_parser().parse_args(rest)
            assert (chosen.training_script, chosen.module) == ("gfgw_prod", True)
            check_gfgw(chosen.training_script_args)
        case "launch/elastic.sh":
            assert (pages.ROOT / program).is_file()
            check_gfgw(["train", *rest])
        case "sbatch":
            assert (pages.ROOT / "launch" / "slurm.sbatch").is_file()
            check_gfgw(["train", *rest[rest.index("launch/slurm.sbatch") + 1 :]])
        case "make":
            check_make(*rest)
        case "kubectl" if rest[0] == "apply":
            assert (pages.ROOT / rest[rest.index("-k") + 1] / "kustomization.yaml").is_file()
        case "kubectl":
            suffix = yaml.safe_load((pages.ROOT / "launch/kubernetes/a100/kustomization.yaml").read_text())
            assert rest[-1].endswith(suffix["nameSuffix"])
        case "curl":
            assert rest[-1].endswith(("/metrics", "/live", "/ready"))
        case "tensorboard":
            assert rest[0] == "--logdir"
        case "echo":
            assert "docker/.env" in (pages.ROOT / "docker" / "compose.yaml").read_text()
        case _:
            pytest.fail(f"nobody knows how to check {command}")


def check_gfgw(arguments: list[str]) -> None:
    """The command, its options and its settings exist."""
    _, options = cli.parse(arguments)
    if "settings" in options:
        configuration(options)


def check_make(target: str, *variables: str) -> None:
    """The target exists, and what it passes on is understood."""
    assert re.search(rf"^{target}:.*## ", (pages.ROOT / "Makefile").read_text(), re.M)
    given = dict(variable.split("=", 1) for variable in variables)
    assert given.keys() <= {"CONFIG", "ARGS"}
    if target == "train":
        config = given.get("CONFIG", "configs/digits.yaml")
        check_gfgw(["train", "--config", config, *shlex.split(given.get("ARGS", ""))])
    elif target == "compose":
        words = shlex.split(given["ARGS"])
        assert words[0] in ("cp", "logs", "run")
        if "run" in words:
            check_gfgw(words[words.index("trainer") + 1 :])
    elif "CONFIG" in given:
        assert (pages.ROOT / given["CONFIG"]).is_file()


def test_targets_and_benchmarks_that_the_text_names_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (pages.ROOT / "Makefile").read_text(), re.M))
    help_page = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=pages.ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[0] for line in help_page.splitlines()} == targets
    benchmarks = (pages.ROOT / "benchmarks" / "__main__.py").read_text()
    for page in pages.PAGES:
        text = page.read_text(encoding="utf-8")
        assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets, page.name
        for name in re.findall(r"`make\s+bench\s+ARGS=\"?([a-z-]+)", text):
            assert name in benchmarks, f"{page.name}: {name}"
