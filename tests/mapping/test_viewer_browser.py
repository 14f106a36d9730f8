"""The page of a map, used as people do: by mouse, by two fingers, by keyboard alone."""

import re
import shutil
import threading
from contextlib import contextmanager
from importlib.util import find_spec

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
from affine import Affine
from shapely.geometry import box

from butterfly_sdm.data.dataset import Dataset, DatasetCard
from butterfly_sdm.mapping.map_file import Band, open_map
from butterfly_sdm.mapping.viewer import SitesSeen, export_page, make_server

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs the browser chromium on the PATH"),
    pytest.mark.skipif(find_spec("playwright") is None, reason="needs the package playwright"),
]
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
DESKTOP = {"viewport": {"width": 1440, "height": 900}}
SKILL = {
    "sentence": "Skill was measured on 20 held-out sites.",
    "species": {
        "Common": {
            "skill": 0.4,
            "low": 0.2,
            "high": 0.6,
            "sites": 18,
            "of": 20,
            "verdict": "better",
        },
        "Rare": {
            "skill": -0.1,
            "low": -0.5,
            "high": 0.1,
            "sites": 2,
            "of": 20,
            "verdict": "unsure",
        },
    },
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A map of 600 x 400 positions: two species, bounds of one, dissimilarity, a hole."""
    folder = tmp_path_factory.mktemp("map")
    y, x = np.mgrid[:600, :400]
    common = 0.2 + 0.5 * x / 400
    values = np.stack([common, 0.02 + 0.01 * y / 600, common - 0.1, common + 0.2, x / 200])
    values[:, 250:350, 150:250] = np.nan
    bands = [
        Band("Common"),
        Band("Rare"),
        Band("Common lower", "lower bound"),
        Band("Common upper", "upper bound"),
        Band("dissimilarity", "mean distances", 2.0),
    ]
    with open_map(
        folder / "map.tif",
        (600, 400),
        Affine(100.0, 0.0, 300_000.0, 0.0, -100.0, 260_000.0),
        "EPSG:27700",
        bands,
        dtype="float32",
        scratch=folder,
    ) as writer:
        writer.write(slice(0, 600), values)
        interval = {"sentence": "Intervals hold 90 % of rates.", "level": 0.9}
        writer.tag(mode="exact", skill=SKILL, interval=interval, limits={"dissimilarity": 1.5})
    return folder / "map.tif"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield made
        made.close()


@pytest.fixture(scope="module")
def exported(path):
    return export_page(path).as_uri()


@contextmanager
def opened(browser, address, **device):
    """Open a page and fail if it logs an error or asks for anything but itself."""
    context = browser.new_context(**device)
    page, wrong, asked = context.new_page(), [], []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_selector("body[data-ready=yes]")
    yield page
    assert not wrong
    base = address.split("#")[0]
    assert all(url.startswith((base, "blob:")) for url in asked)
    context.close()


def zoom_of(page):
    return page.evaluate("map.getZoom()")


def click_at(page, x, y):
    at = page.evaluate(f"(({{x, y}}) => [x, y])(map.latLngToContainerPoint([{y}, {x}]))")
    page.locator("#map").click(position={"x": at[0], "y": at[1]})
    page.wait_for_selector("#values tr")


def said(page):
    cells = [row.locator("td").all_inner_texts() for row in page.locator("#values tr").all()]
    return {row[0].split("\n")[0]: row[1:] for row in cells}


def test_a_click_tells_values_intervals_and_applicability(browser, exported, path):
    with opened(browser, exported, **DESKTOP) as page:
        click_at(page, 336_050, 249_950)
        with rasterio.open(path) as source:
            expected = source.read()[:, 100, 360]
        found = said(page)
        assert float(found["Common"][0]) == pytest.approx(expected[0], abs=0.003)
        low, high = map(float, found["Common"][1].split(" to "))
        assert (low, high) == pytest.approx((expected[2], expected[3]), abs=0.003)
        assert list(found) == ["Common", "Rare", "dissimilarity"]  # bounds stand in the interval
        where = page.locator("#where").inner_text()
        assert "336050, 249950 (EPSG:27700)" in where
        assert re.search(
            r"dissimilarity 1\.80\d: not like the training sites \(limit 1.500\)", where
        )
        click_at(page, 310_050, 249_950)
        assert "like the training sites" in (where := page.locator("#where").inner_text())
        assert "not like" not in where
        click_at(page, 320_050, 230_050)
        assert found.keys() == said(page).keys()
        assert said(page)["Common"][0] == "nothing predicted"


def test_skill_stands_beside_each_name_and_what_is_no_better_is_marked(browser, exported):
    with opened(browser, exported, **DESKTOP) as page:
        options = page.locator("#band option").all_inner_texts()
        assert options[:2] == [
            "Common · skill 0.40",
            "Rare · skill -0.10 · not shown to be better than its mean rate",
        ]
        assert "Skill 0.40 (95 % interval 0.20 to 0.60), better" in page.inner_text("#skill")
        page.select_option("#band", "1")
        assert "not shown to be better than its mean rate" in page.inner_text("#skill")
        assert "Seen at 2 of 20" in page.inner_text("#skill")
        page.fill("#find", "diss")
        assert page.locator("#band option").all_inner_texts() == ["dissimilarity"]


def test_two_fingers_zoom_the_map_at_360_px(browser, exported):
    with opened(browser, exported, **PHONE) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        before = zoom_of(page)
        box = page.locator("#map").bounding_box()
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        session = page.context.new_cdp_session(page)
        for step, (kind, apart) in enumerate(
            [
                ("touchStart", 30),
                *[("touchMove", 30 + 12 * i) for i in range(1, 8)],
                ("touchEnd", 0),
            ]
        ):
            fingers = [
                {"x": middle[0] + side * apart, "y": middle[1], "id": number}
                for number, side in enumerate((-1, 1))
            ]
            points = fingers if kind != "touchEnd" else []
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
            page.wait_for_timeout(30 + step)
        page.wait_for_timeout(600)
        assert zoom_of(page) > before + 1
        page.tap("#whole")
        page.wait_for_timeout(600)
        assert zoom_of(page) == before


def test_everything_works_by_keyboard_alone(browser, exported):
    with opened(browser, exported, **DESKTOP) as page:
        reached = []
        for _ in range(16):
            page.keyboard.press("Tab")
            name = "document.activeElement.id || document.activeElement.className"
            reached.append(page.evaluate(name))
        for wanted in ("band", "find", "map", "whole", "link", "picture", "hatch"):
            assert wanted in reached
        page.focus("#map")
        before, middle = zoom_of(page), "map.getCenter().lng"
        page.keyboard.press("+")
        page.wait_for_timeout(600)
        assert zoom_of(page) == before + 1
        east = page.evaluate(middle)
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(600)
        assert page.evaluate(middle) > east
        assert page.locator(".cross").is_visible()
        page.keyboard.press("Enter")
        page.wait_for_selector("#values tr")
        assert page.inner_text("#where").startswith(f"{page.evaluate(middle):.0f}"[:4])
        page.focus("#band")
        page.keyboard.press("ArrowDown")
        assert "Seen at 2 of 20" in page.inner_text("#skill")


def test_a_link_leads_to_the_same_view(browser, exported):
    with opened(browser, exported, **DESKTOP) as page:
        page.select_option("#band", "1")
        page.check("input[value=fixed]")
        page.evaluate("map.setView([240000, 310000], 3, {animate: false})")
        page.click("#link")
        link = page.url
        assert "#" in link
    with opened(browser, link, **DESKTOP) as page:
        assert page.evaluate("chosen") == 1
        assert page.is_checked("input[value=fixed]")
        assert zoom_of(page) == 3
        assert page.evaluate("map.getCenter().lng") == pytest.approx(310_000, abs=1)


def pixels(page, selector):
    """Return the different colours of the middle block of a picture that is drawn."""
    script = f"""() => {{ const c = {selector}, d = c.getContext("2d").getImageData(0, 0, c.width,
      c.height).data, found = new Set(); for (let i = 0; i < d.length; i += 4)
      found.add(d.slice(i, i + 3).join()); return [...found]; }}"""
    return page.evaluate(script)


def test_a_picture_holds_the_map_and_its_legend(browser, exported, tmp_path):
    with opened(browser, exported, **DESKTOP) as page:
        with page.expect_download() as told:
            page.click("#picture")
        told.value.save_as(tmp_path / "picture.png")
    assert told.value.suggested_filename == "map Common.png"
    with rasterio.open(tmp_path / "picture.png") as picture:
        values = picture.read()[:3]
    assert values.shape[1:] == (996, 1104)
    colours = {tuple(c) for c in values.reshape(3, -1).T.tolist()}
    assert (0, 68, 27) in colours and (0x8D, 0x98, 0x92) in colours  # the darkest, the hatching


def test_no_data_never_looks_like_a_low_value(browser, exported):
    with opened(browser, exported, **DESKTOP) as page:
        marks = pixels(page, "patterns.nothing")
        assert len(marks) > 1  # lines on white: told apart without colour
        names = page.locator("#keys").inner_text()
        assert "nothing predicted" in names
        assert "not like the training sites (dissimilarity above 1.500)" in names


def test_sites_and_shapes_lie_where_they_are_and_tell_what_was_seen(browser, path, tmp_path):
    ids = pd.Index(["wood", "field"], name="site_id")
    table = pd.DataFrame(
        {"easting": [310_000.0, 330_000.0], "northing": [250_000.0] * 2, "visits": [9, 4]},
        index=ids,
    )
    card = DatasetCard(name="made", species=("Common", "Rare"), position_crs="EPSG:27700")
    seen = pd.DataFrame({"Common": [3, 0], "Rare": [1, 0]}, index=ids)
    shapes = gpd.GeoSeries([box(320_000, 230_000, 325_000, 240_000)], crs="EPSG:27700")
    shapes.to_file(tmp_path / "plan.gpkg")
    sites = SitesSeen(Dataset(card, gpd.GeoDataFrame(table), seen))
    page_of = export_page(path, tmp_path / "m.html", sites=sites, shapes=tmp_path / "plan.gpkg")
    with opened(browser, page_of.as_uri(), **DESKTOP) as page:
        click_at(page, 310_000, 250_000)
        page.wait_for_selector("#where >> text=Site wood")
        where = page.inner_text("#where")
        assert "Site wood: Common on 3 of 9 visits; 2 of these species seen." in where
        click_at(page, 330_000, 250_000)
        page.wait_for_selector("#where >> text=Site field: Common on 0 of 4 visits")
        assert "site where it was not seen" in page.inner_text("#keys")
        assert page.evaluate("shapes.getBounds().getWest()") == pytest.approx(320_000, abs=1)


def test_a_served_map_shows_what_the_file_holds(browser, path):
    server = make_server(path)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with opened(browser, f"http://127.0.0.1:{server.server_address[1]}/", **DESKTOP) as page:
            click_at(page, 336_050, 249_950)
            with rasterio.open(path) as source:
                expected = source.read()[:, 100, 360]
            assert float(said(page)["Common"][0]) == pytest.approx(expected[0], abs=0.0006)
            page.evaluate("map.setView([240000, 310000], map.getMaxZoom(), {animate: false})")
            page.wait_for_timeout(300)
            page.wait_for_selector("body[data-ready=yes]")
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_no_violation(browser, exported, device):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-core")
    context = browser.new_context(**device, bypass_csp=True)  # axe is put into the page
    page = context.new_page()
    page.goto(exported)
    page.wait_for_selector("body[data-ready=yes]")
    page.click("#map")
    page.wait_for_selector("#values tr")
    result = axe.Axe().run(page)
    assert result.violations_count == 0, result.generate_report()
    context.close()
