"""One small region with all four artefacts, made once for the whole room."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from butterfly_sdm.simulate import simulate_region
from tests.plugins.conftest import settings_of
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


@pytest.fixture(scope="session")
def with_plugin(finished: Finished) -> Finished:
    """Train a plugin beside the four artefacts, undisturbed."""
    folder = finished.config.parent
    settings = settings_of("dfcon", folder / "faces")
    finished.config.with_name("plugin.yaml").write_text(yaml.safe_dump(settings))
    code, message, seconds = faults.run("plugin train", finished.config, finished.work)
    assert code == 0, message
    finished.seconds["plugin train"] = seconds
    return finished


@pytest.fixture
def copied_region(finished: Finished, tmp_path: Path) -> Path:
    """Return the config of a copy of the region, to be harmed."""
    copy = shutil.copytree(finished.config.parent, tmp_path / "region")
    return copy / finished.config.name
