"""The image, built once for all tests that run it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .engine import IMAGE, build, make_base, podman, require


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The engine's description of the image."""
    require()
    make_base(tmp_path_factory.mktemp("base"))
    build(tmp_path_factory.mktemp("secrets"))
    return dict(json.loads(podman("image", "inspect", IMAGE).stdout)[0])
