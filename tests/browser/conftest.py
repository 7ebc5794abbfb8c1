"""The runs that tests of processes have finished."""

from ..process.conftest import killed_and_resumed

__all__ = ["killed_and_resumed"]
