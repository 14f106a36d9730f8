"""Fixtures every room uses."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of the real data; without it the test is skipped."""
    value = os.environ.get("BUTTERFLY_SDM_SHARED")
    if not value:
        pytest.skip("BUTTERFLY_SDM_SHARED is not set: the real data are not here")
    folder = Path(value)
    if not folder.is_dir():
        pytest.skip(f"BUTTERFLY_SDM_SHARED names {folder}, which is not a folder")
    return folder
