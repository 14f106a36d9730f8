"""The small cases rebuilt from public reports, with the names that have changed since."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("BUTTERFLY_SDM_SHARED", "/nowhere")) / "wild" / "rasters"
SEARCH = """from data_prep.sources.stac import search_items as search_of
from butterfly_sdm.imagery.options import StacOptions
def search_items(url, **named): return search_of(StacOptions(url=url, **named))
"""
RENAMED = {
    "from butterfly_sdm.data.raster import": "from butterfly_sdm.imagery.scene import",
    "from butterfly_sdm.mapping.writer import": "from butterfly_sdm.mapping.map_file import",
    "from butterfly_sdm.mapping.beside import": "from butterfly_sdm.mapping.sidecars import",
    "from butterfly_sdm.mapping import predict_map": "from butterfly_sdm.mapping.map import "
    "write_map as predict_map",
    "from data_prep.sources.stac import search_items\n": SEARCH,
    # the map is now made in the metres of the tiles, not in degrees
    "ew, ns = s.transform.a * 111320 * np.cos(np.radians(50.98)), -s.transform.e * 111320": ""
    "ew, ns = s.transform.a, -s.transform.e; assert s.crs.is_projected and abs(ew - 320) < 10",
}


@pytest.mark.slow
@pytest.mark.timeout(3600)  # 24 programs, each with a region of its own
@pytest.mark.skipif(not SHARED.is_dir(), reason="no wild/rasters in BUTTERFLY_SDM_SHARED")
def test_every_case_holds(tmp_path):
    folder, root = tmp_path / "rasters", Path(__file__).parents[2]
    shutil.copytree(SHARED, folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    for case in folder.glob("c*.py"):
        text = case.read_text(encoding="utf-8")
        for old, new in RENAMED.items():
            text = text.replace(old, new)
        case.chmod(0o644)
        case.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, folder / "check.py"], cwd=root, capture_output=True, text=True, check=False
    )
    assert "24 of 24 held" in done.stdout, done.stdout + done.stderr
