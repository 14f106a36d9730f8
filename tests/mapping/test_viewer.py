import base64
import html
import json
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
import zlib

import numpy as np
import pytest
import rasterio

from butterfly_sdm.errors import DataError
from butterfly_sdm.imagery.scene import open_scene
from butterfly_sdm.mapping.viewer import LEVELS, export_page, make_server, viewer_page
from tests.mapping.world import Position, map_of, write_scene


class Hostile(Position):
    species = ("</script><script>alert(1)</script>", "North & <b>South</b>")

    def predict(self, dataset, sites):
        return super().predict(dataset, sites).set_axis(list(self.species), axis=1)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    path = write_scene(
        tmp_path_factory.mktemp("scene") / "scene.tif", hole=(slice(0, 200), slice(0, 200))
    )
    return open_scene(path)


@pytest.fixture(scope="module")
def plain(scene, tmp_path_factory):
    return map_of(
        Position(),
        scene,
        tmp_path_factory.mktemp("map") / "map.tif",
        layers=["richness"],
        beside=(),
    )


def data_of(page):
    return json.loads(
        page.split('<script id="data" type="application/json">')[1].split("</script>")[0]
    )


def test_the_page_holds_the_values_of_every_band(plain, tmp_path):
    data = data_of(export_page(plain.path, tmp_path / "map.html").read_text())
    with rasterio.open(plain.path) as source:
        expected = source.read(masked=True).filled(np.nan)
    assert [band["name"] for band in data["bands"]] == ["East", "North", "expected richness"]
    for band, values in zip(data["bands"], expected, strict=True):
        stored = np.frombuffer(
            zlib.decompress(base64.b64decode(band["data"])), dtype=np.uint8
        ).reshape(values.shape)
        found = np.where(
            stored == 255, np.nan, band["low"] + (band["high"] - band["low"]) * stored / LEVELS
        )
        np.testing.assert_allclose(found, values, atol=0.51 * (band["high"] - band["low"]) / LEVELS)


def test_the_page_loads_nothing_from_outside(plain):
    page = viewer_page(plain.path)
    for outside in ("http://", "https://", " src=", "@import", "url("):
        assert outside not in page


def test_a_species_name_cannot_become_code(scene, tmp_path):
    result = map_of(Hostile(), scene, tmp_path / "map.tif", beside=())
    page = viewer_page(result.path)
    assert page.count("<script") == 2
    assert "alert(1)</script>" not in page
    assert data_of(page)["bands"][0]["name"] == Hostile.species[0]


def test_the_server_answers_this_machine_alone(plain):
    server = make_server(plain.path)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        host, port = server.server_address
        assert host == "127.0.0.1"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
            assert b"expected richness" in answer.read()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/etc/passwd")
        disguised = urllib.request.Request(
            f"http://127.0.0.1:{port}/", headers={"Host": "elsewhere.example"}
        )
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(disguised)
    finally:
        server.shutdown()
        server.server_close()


USE = """<script>
const wait = setInterval(() => {
  if (document.body.dataset.ready !== "yes") return;
  clearInterval(wait);
  const box = canvas.getBoundingClientRect(), at = { clientX: box.left + view.x + COL * view.scale,
    clientY: box.top + view.y + ROW * view.scale, bubbles: true, pointerId: 1 };
  canvas.setPointerCapture = () => {};
  for (const name of ["pointerdown", "pointerup"]) canvas.dispatchEvent(new PointerEvent(name, at));
  get("find").value = "nor"; get("find").dispatchEvent(new Event("input"));
}, 20);
</script></body>"""


@pytest.mark.skipif(
    shutil.which("chromium") is None, reason="needs the browser chromium on the PATH"
)
def test_in_a_browser_a_click_tells_the_values_of_a_place_and_a_word_finds_its_bands(
    plain, tmp_path
):
    row, col = 11, 14
    page = viewer_page(plain.path, overlay="expected richness", limit=0.5)
    use = USE.replace("ROW", str(row + 0.5)).replace("COL", str(col + 0.5))
    (tmp_path / "page.html").write_text(page.replace("</body>", use), encoding="utf-8")
    browser = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command = [
        *browser,
        "--virtual-time-budget=8000",
        "--dump-dom",
        (tmp_path / "page.html").as_uri(),
    ]
    dom = html.unescape(
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    )
    said = dict(re.findall(r"<td>([^<]+)</td><td>([^<]+)</td>", dom))
    with rasterio.open(plain.path) as source:
        expected = dict(zip(source.descriptions, source.read()[:, row, col], strict=True))
        x, y = source.xy(row, col)
    assert said.keys() == expected.keys()
    for name, value in expected.items():
        assert float(said[name]) == pytest.approx(value, abs=0.005)
    assert f"{x:.0f}, {y:.0f} (EPSG:27700)" in dom
    assert re.findall(r"<option[^>]*>([^<]+)</option>", dom) == ["North"]
    assert "expected richness above 0.500: not like the training sites" in dom


def test_an_overlay_needs_its_limit_and_its_band(plain):
    assert data_of(viewer_page(plain.path, overlay="expected richness", limit=0.5))["limit"] == 0.5
    with pytest.raises(DataError, match="needs a limit"):
        viewer_page(plain.path, overlay="expected richness")
    with pytest.raises(DataError, match="no band 'nothing'"):
        viewer_page(plain.path, overlay="nothing", limit=1)
