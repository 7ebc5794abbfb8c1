"""The public Python interface, which ``gfgw_prod`` imports on first use. docs/python.md describes it."""

from __future__ import annotations

from gfgw_prod.api.evaluating import evaluate
from gfgw_prod.api.generator import Generator, load_generator
from gfgw_prod.api.training import load_config, train
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.settings.config import Config

__all__ = ["Config", "Generator", "UserError", "evaluate", "load_config", "load_generator", "train"]
