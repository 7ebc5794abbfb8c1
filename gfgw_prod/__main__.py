"""``python -m gfgw_prod``."""

from gfgw_prod.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
