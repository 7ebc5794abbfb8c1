"""The command ``doctor``: whether this machine can train, how well, and what to do if not."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from gfgw_prod.commands.doctor import gpus, host, storage
from gfgw_prod.commands.options import add_json
from gfgw_prod.process.exit_codes import BAD_INPUT, FINISHED


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``doctor``."""
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print the findings; return 2 if any is bad."""
    here = Path("runs") if Path("runs").is_dir() else Path.cwd()
    findings = [
        *(host.python(), host.torch_build(), *gpus.findings(), host.cores(), host.arithmetic()),
        *(host.memory(), host.shared_memory(), host.compiler()),
        *(host.loopback(), host.own_name(), host.port("metrics", 9100), host.port("rendezvous", 29400), host.clock()),
        *(storage.space(here), storage.speed(here), storage.temporary(), *storage.weights()),
    ]
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            print(f"{finding.state:<5} {finding.check:<14} {finding.detail}")
            if finding.advice:
                print(f"{'':<20} -> {finding.advice}")
    return BAD_INPUT if any(finding.state == "bad" for finding in findings) else FINISHED
