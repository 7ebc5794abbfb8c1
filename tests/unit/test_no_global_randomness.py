"""Randomness comes from named streams: only ``distributed`` touches a global generator, and none stores one."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import gfgw_prod

PACKAGE = Path(gfgw_prod.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# Each draws from the generator it is given, and from the global one otherwise.
DRAWS = {"rand", "randn", "randint", "randperm", "normal", "multinomial", "bernoulli"}
IN_PLACE = {"normal_", "uniform_", "bernoulli_", "random_", "exponential_", "cauchy_", "log_normal_", "geometric_"}
SEEDS = {"manual_seed", "manual_seed_all", "seed", "seed_all", "initial_seed", "fork_rng"}
STATES = {"get_rng_state", "set_rng_state", "get_rng_state_all", "set_rng_state_all", "get_state", "set_state"}


def findings(source: str, *, may_seed: bool) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if getattr(node, "module", None) == "torch" and DRAWS & set(names):
                yield f"{node.lineno}: imports {', '.join(names)}, which would not be seen where it is called"
            if {"random", "numpy.random", "secrets"} & set(names):
                yield f"{node.lineno}: imports {', '.join(names)}"
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, given = node.func.attr, {keyword.arg for keyword in node.keywords}
        on_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
        # ``random_stream(...)`` seeds a generator of its own; torch.manual_seed seeds everybody's.
        # Layers are initialised, and drop out, inside ``distributed.cells.seeded_globally``.
        by_layer = ast.unparse(node.func.value) == "nn.init"
        if ((on_torch and name in DRAWS) or name in IN_PLACE) and "generator" not in given and not by_layer:
            yield f"{node.lineno}: {name} without a generator"
        if name.endswith("_like") and name.startswith("rand"):
            yield f"{node.lineno}: {name} takes no generator"
        if (name in SEEDS and not may_seed) or name in STATES:
            yield f"{node.lineno}: {name}"
        if ast.unparse(node.func.value) in {"np.random", "numpy.random", "random"}:
            yield f"{node.lineno}: {ast.unparse(node.func)}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_global_generator_is_used(file: Path) -> None:
    distributed = "distributed" in file.parts
    assert not list(findings(file.read_text(encoding="utf-8"), may_seed=distributed))


@pytest.mark.parametrize(
    "line",
    [
        "noise = torch.randn(3)",
        "weight.normal_()",
        "torch.manual_seed(0)",
        "state = torch.get_rng_state()",
        "noise = torch.randn_like(x)",
        "import random",
        "from torch import Tensor, randn",
        "from numpy import random",
        "i = np.random.randint(3)",
    ],
)
def test_a_global_generator_would_be_found(line: str) -> None:
    assert list(findings(line, may_seed=False))
