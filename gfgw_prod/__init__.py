"""gfgw_prod: a fault-tolerant trainer of one-step image generators by fused Gromov-Wasserstein flow matching.

``__all__`` is the public interface, and docs/python.md describes it. Its names are imported on first use, so that
``import gfgw_prod`` loads neither torch nor pydantic.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gfgw_prod.process.version import VERSION

if TYPE_CHECKING:
    from gfgw_prod.api import Config, Generator, UserError, evaluate, load_config, load_generator, train

__version__ = VERSION
__all__ = ["Config", "Generator", "UserError", "evaluate", "load_config", "load_generator", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("gfgw_prod.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
