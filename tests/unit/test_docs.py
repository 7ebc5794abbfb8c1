"""The pages: links lead somewhere, licences are those of the locks, and so is the bill of materials."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.manual import PAGES as MADE
from docs.manual import page_that_explains, presets_that_set
from gfgw_prod.process import exit_codes
from gfgw_prod.settings.reading import setting_names
from gfgw_prod.telemetry.catalogue import CATALOGUE

from ..licences import ROOT, locked
from ..pages import PAGES

CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Fragments that a page's headings have on GitHub."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_pages_and_sections_that_there_are(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), target
            continue
        place, _, fragment = target.partition("#")
        found = (page.parent / place).resolve() if place else page
        assert found.is_relative_to(ROOT), target
        assert found.exists(), target
        assert not fragment or fragment in anchors(found), target


def test_no_page_is_out_of_reach() -> None:
    linked = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"\]\(([^)#\s]+\.md)[^)]*\)", page.read_text(encoding="utf-8"))
    }
    assert {page for page in PAGES if page.name != "README.md"} <= linked


@pytest.mark.parametrize("name", MADE)
def test_pages_made_from_code_are_current(name: str) -> None:
    assert (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") == MADE[name](), "run make docs"


def test_every_setting_is_on_its_page_with_its_meaning() -> None:
    rows = re.findall(r"^\| `([a-z0-9_.]+)` \| (.+) \| (.+) \| (.+) \| (free)? ?\| .* \|$", MADE["settings"](), re.M)
    assert [name for name, *_ in rows] == list(setting_names())
    assert all(len(told) > 5 and "none" not in default.lower() for _, _, default, told, _ in rows)


@pytest.mark.parametrize("name", [name for name in setting_names() if not presets_that_set(name)])
def test_setting_that_no_preset_sets_is_explained_on_a_page(name: str) -> None:
    assert page_that_explains(name)


def test_every_exit_code_is_on_its_page() -> None:
    constants = {value for name, value in vars(exit_codes).items() if name.isupper() and isinstance(value, int)}
    assert constants - {exit_codes.CRASHED} == {code.number for code in exit_codes.CODES if code.number != "other"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_metrics_that_a_page_names_are_in_the_catalogue(page: Path) -> None:
    named = re.findall(r"(?<![\w/.])gfgw_[a-z_]+[a-z](?![\w/*…])", page.read_text(encoding="utf-8"))
    assert set(named) - {"gfgw_prod"} <= {metric.exposed for metric in CATALOGUE}


def test_licences_are_those_of_the_locks() -> None:
    rows = re.findall(r"^\| ([a-z0-9-]+) \| ([^ ]+) \| (.+) \|$", (ROOT / "docs" / "licences.md").read_text(), re.M)
    listed = {name: version for name, version, _ in rows if name != "package"}
    wanted = locked("requirements.lock")
    assert listed.items() <= wanted.items(), "run make docs"
    elsewhere = wanted.keys() - listed.keys()
    assert len(elsewhere) < 12, f"these would have to be for other systems: {elsewhere}"
    assert all(licence.upper() != "UNKNOWN" for _, _, licence in rows)


def test_image_gets_a_part_of_what_was_tested() -> None:
    everything = locked("requirements.lock")
    assert locked("docker/runtime.lock").items() <= everything.items()
    assert {"torch", "prometheus-client"} <= locked("docker/runtime.lock").keys()
    assert not {"pytest", "ruff", "hatchling", "uv"} & locked("docker/runtime.lock").keys()
    build = locked("docker/build.lock")
    assert build.pop("uv") in (ROOT / "Makefile").read_text()
    assert build.items() <= everything.items()


@pytest.mark.slow
def test_bill_of_materials_names_what_the_image_holds(tmp_path: Path) -> None:
    program = str(Path(sys.executable).parent / "cyclonedx-py")
    command = ["requirements", "docker/runtime.lock", "--pyproject", "pyproject.toml", "--of", "JSON", "-o"]
    subprocess.run([program, *command, str(tmp_path / "sbom.json")], cwd=ROOT, check=True, capture_output=True)
    made = json.loads((tmp_path / "sbom.json").read_text())
    assert made["metadata"]["component"]["name"] == "gfgw-prod"
    components = {each["name"]: each for each in made["components"]}
    assert {name: each.get("version") for name, each in components.items()} == locked("docker/runtime.lock")


def test_modules_that_pages_name_are_there() -> None:
    modules = {module.relative_to(ROOT / "gfgw_prod").as_posix() for module in (ROOT / "gfgw_prod").rglob("*.py")}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        made = set(re.findall(r"`(?:gfgw_prod/)?([\w/]+\.py)`\n\n```python", text))  # by the reader
        for name in re.findall(r"\b((?:\w+/)*\w+\.py)\b", re.sub(r"\b(tests|benchmarks)/\S+", "", text)):
            short = name.removeprefix("gfgw_prod/")
            assert short in made or any(each == short or each.endswith(f"/{short}") for each in modules), (page, name)
