"""Facts that stand in two places."""

from __future__ import annotations

import tomllib
from pathlib import Path

import atelier_worker


def test_the_package_and_its_manifest_have_one_version() -> None:
    manifest = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert manifest["project"]["version"] == atelier_worker.__version__
