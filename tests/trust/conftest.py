"""One small region with all four artefacts, made once for the whole room."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from butterfly_sdm.simulate import simulate_region
from tests.trust import faults


@dataclass(frozen=True)
class Finished:
    """A region, its artefacts and how long each verb took."""

    config: Path
    work: Path
    seconds: dict[str, float]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Run all four verbs once, undisturbed."""
    folder = tmp_path_factory.mktemp("trust")
    region = simulate_region(
        folder / "region", size_px=512, n_sites=12, n_species=3, tile_px=64, window_px=64
    )
    work = folder / "work"
    work.mkdir()
    seconds = {}
    for verb in faults.VERBS:
        code, message, seconds[verb] = faults.run(verb, region.config, work)
        assert code == 0, f"{verb}: {message}"
    return Finished(region.config, work, seconds)


@pytest.fixture
def copied_region(finished: Finished, tmp_path: Path) -> Path:
    """Return the config of a copy of the region, to be harmed."""
    copy = shutil.copytree(finished.config.parent, tmp_path / "region")
    return copy / finished.config.name
