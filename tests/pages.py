"""The commands of the README and docs/: which ones a test runs, and which it only parses, and why."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# Sections whose blocks are one script, and pages with a test of their own.
SCRIPTS = {("two-nodes.md", "Two nodes, a stop, a kill"), ("python.md", "As a wheel")}  # tests/process/test_wheel.py
ELSEWHERE = {"extending.md": "tests/process/test_extending.py"}

# Run in a copy of the repository with a short digits run, in this order.
RUN = (
    "make setup",
    "make train",
    ".venv/bin/gfgw inspect runs/digits",
    ".venv/bin/gfgw inspect runs",
    ".venv/bin/gfgw sample runs/digits --num 100 --grid --out runs/digits/more-samples",
    ".venv/bin/gfgw sample runs/digits --num 50000 --out samples",
    ".venv/bin/gfgw evaluate runs/digits --metrics fd,pr,coverage,memorisation",
    ".venv/bin/torchrun --standalone --nproc_per_node=2 -m gfgw_prod evaluate runs/digits -n 50000 --json",
    ".venv/bin/gfgw export runs/digits --format safetensors --out runs/digits.safetensors",
    ".venv/bin/gfgw pack data/mine --config configs/imagenet64.yaml --data.source folder --data.path DIR",
    "NPROC=2 launch/elastic.sh --config configs/digits.yaml",
    ".venv/bin/gfgw train --config configs/cifar10.yaml --dry-run --ranks 8",
    ".venv/bin/gfgw doctor",
    ".venv/bin/torchrun --standalone --nproc_per_node=2 -m gfgw_prod train --config configs/digits.yaml "
    "--distributed.strategy fsdp",
)

# Patterns of commands that are parsed but not run, and why.
CHECKED = {
    r"make test": "runs this test",
    r'make train ARGS=".*"': "as make train, for minutes",
    r"make train CONFIG=configs/cifar10\.yaml .*": "needs CIFAR-10, the weights of two networks, and a GPU",
    r"\.venv/bin/gfgw train --config pictures --data\.path DIR": "tests/process/test_pictures.py runs it, smaller",
    r"\.venv/bin/gfgw train --config pictures .* --features\.pixel-constant 0 .*": "test_pictures.py runs one, smaller",
    r"make train CONFIG=configs/pictures\.yaml .*": "as gfgw train, on all cores",
    r"make gpu-check": "tests/process/test_gpu_check.py runs it",
    r"make (docker-build|docker-train .*|up)": "needs a docker daemon; tests/image builds and runs the image and stack",
    r"make (compose .*|down)": "needs that stack; tests/image/test_stack.py runs all but cp and logs with podman",
    r'echo "GRAFANA_ADMIN_PASSWORD=.*" >docker/\.env': "belongs to make up; tests/process/test_compose.py sets it",
    r"\.venv/bin/tensorboard --logdir runs(/digits)?": "never ends; make browser looks at it",
    r".*gfgw evaluate RUN .*": "takes minutes; a smaller one is run",
    r"\.venv/bin/gfgw evaluate --config pictures .*": "tests/unit/test_evaluate_command.py measures samples from files",
    r".*torchrun .*=8 -m gfgw_prod evaluate RUN .*": "is run with two ranks",
    r".*gfgw (pack data/imagenet64|train --config configs/imagenet64\.yaml).*": "needs ImageNet, or a GPU",
    r"NNODES=1:4 RDZV_ENDPOINT=node0:29400 .*": "needs hosts and CIFAR-10; the two nodes of two-nodes.md are run",
    r"sbatch .*": "needs a cluster; tests/process/test_slurm.py submits the script to a real SLURM",
    r"kubectl .*": "needs a cluster; tests/process/test_manifests.py checks the manifests against the schemas",
    r"curl -s 127\.0\.0\.1:9100/\w+": "needs a run on that port; tests/process/test_health.py reads these pages",
}


class Block(NamedTuple):
    """A block of shell commands, with its page and heading."""

    page: str
    heading: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Its commands, one per line, without comments."""
        joined = self.text.replace("\\\n", " ")
        lines = (re.sub(r"(^|\s+)#\s.*$", "", line).strip() for line in joined.splitlines())
        return [re.sub(r"\s{2,}", " ", line) for line in lines if line]


def shell_blocks() -> list[Block]:
    """All blocks of shell commands of the README and docs/."""
    found = []
    for page in PAGES:
        heading = ""
        for title, text in re.findall(
            r"^#+ ([^\n]*)$|^```(?:sh|bash)\n(.*?)^```", page.read_text("utf-8"), re.M | re.S
        ):
            if title:
                heading = title
            else:
                found.append(Block(page.name, heading, text))
    return found


def script(page: str, heading: str) -> str:
    """All shell blocks under a heading, joined."""
    return "".join(block.text for block in shell_blocks() if (block.page, block.heading) == (page, heading))


def code_blocks(page: Path, language: str) -> list[str]:
    """Code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
