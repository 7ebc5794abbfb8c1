"""``python -m gfgw_prod``, and the command ``gfgw``."""

from gfgw_prod.resilience.orphans import die_with_agent


def main() -> int:
    """Runs a command, alone or as a rank of a launcher; returns the exit code."""
    die_with_agent()  # before anything else is imported: that takes seconds, in which the agent may end
    from gfgw_prod.cli import main as run

    return run()


if __name__ == "__main__":
    raise SystemExit(main())
