"""The report says what was found, holds no link to the network and no script of others."""

import json
import re
import shutil
import subprocess
from dataclasses import replace

import pandas as pd
import pytest

from butterfly_sdm.baselines import make_baseline
from butterfly_sdm.community.community import Community
from butterfly_sdm.data.division import spatial_folds
from butterfly_sdm.errors import DataError
from butterfly_sdm.evaluation.compare import cross_validate
from butterfly_sdm.evaluation.ladder import run_ladder
from butterfly_sdm.evaluation.options import EvaluateOptions
from butterfly_sdm.evaluation.report.findings import collect_findings
from butterfly_sdm.evaluation.report.lives_here import lives_here
from butterfly_sdm.evaluation.report.odmap import TO_FILL
from butterfly_sdm.evaluation.report.page import to_markdown, write_report
from butterfly_sdm.evaluation.report.summary import sentences, warnings_of
from butterfly_sdm.figures.palette import RAMP
from tests.evaluation.worlds import small_world


@pytest.fixture(scope="module")
def world():
    return small_world(species=5)[0]


@pytest.fixture(scope="module")
def findings(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    model = make_baseline("linear").fit(world, world.split.train)
    model.save(folder)
    options = EvaluateOptions(ladder=("nearest_sites",), folds=3, bootstrap=100)
    run_ladder(world, options, folder=folder)
    config = {
        "build": {"records": {"min_records": 200, "institutions": ["UKBMS"]}},
        "train": {"model": {"kind": "linear"}},
    }
    return collect_findings(
        model, world, name="Linear", folder=folder, config=config, importance_repeats=1
    )


def test_the_report_is_one_page_without_network(findings, tmp_path):
    path = write_report(findings, tmp_path / "report.html")
    page = path.read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["'](?!#)""", page)
    assert "default-src 'none'" in page and "{{" not in page
    assert len(re.findall(r'id="([^"]+)"', page)) == len(set(re.findall(r'id="([^"]+)"', page)))
    for species in findings.dataset.species:
        assert species in page
    assert (
        f"{findings.scores['mse']:.4f}" in page
        and "nearest sites" in page
        and "The whole ladder" in page
    )
    for name in ("report.md", "report_species.csv", "report_odmap.csv"):
        assert (tmp_path / name).stat().st_size > 200
    assert set(pd.read_csv(tmp_path / "report_species.csv", index_col=0).index) == set(
        findings.dataset.species
    )


def test_names_cannot_break_out_of_the_page(world, tmp_path):
    evil = "</script><script>alert(1)</script>"
    species = (evil, *world.species[1:])
    named = replace(
        world,
        card=world.card.model_copy(update={"species": species, "name": "<b>x</b>"}),
        detections=world.detections.set_axis(list(species), axis=1),
    )
    model = make_baseline("mean_rate").fit(named, named.split.train)
    page = write_report(
        collect_findings(model, named, name="<i>", importance_repeats=0), tmp_path / "r.html"
    ).read_text()
    assert "<script>alert" not in page and "<b>x</b>" not in page and "<h1><i>" not in page
    assert page.count("</script>") == 2


def test_withheld_species_have_no_places_in_the_page(findings, tmp_path):
    page = write_report(
        findings, tmp_path / "r.html", withheld=findings.dataset.species[:1]
    ).read_text()
    data = page.split('id="report-data">')[1].split("</script>")[0]
    assert json.loads(data)["ramp"][0] == RAMP[0] and json.loads(data)["ramp"][-1] == RAMP[-1]
    assert findings.dataset.species[0] not in data and findings.dataset.species[1] in data
    assert "1 sensitive species have no map" in page


def test_what_else_lives_at_held_out_sites_is_told_with_caution(findings, tmp_path):
    assert 'id="community"' not in write_report(findings, tmp_path / "a.html").read_text("utf-8")
    data = findings.dataset
    train = list(data.split.train)
    folds = spatial_folds(data.sites.loc[train], distance_m=1000, n_folds=3)
    found = cross_validate(lambda: make_baseline("linear"), data, folds)
    community = Community.fit(data, found.predictions, found.fold_of)
    told = replace(findings, community=community)
    rows = lives_here(told)
    assert rows and all(row.low <= row.high for row in rows)
    for row in rows:
        unseen = [name for name, _ in row.likely]
        assert (data.detections.loc[row.site, unseen] == 0).all()
        assert row.seen == (data.detections.loc[row.site] > 0).sum()
        assert all(site in train for site, _ in row.alike)
    secret = rows[0].likely[0][0] if rows[0].likely else data.species[0]
    assert all(secret not in dict(row.likely) for row in lives_here(told, [secret]))
    assert lives_here(replace(told, part="train")) == []
    page = write_report(told, tmp_path / "b.html").read_text("utf-8")
    assert 'id="community"' in page and "never as proof" in page


def test_the_protocol_is_filled_in_from_card_and_config(findings, tmp_path):
    write_report(findings, tmp_path / "r.html")
    protocol = pd.read_csv(tmp_path / "r_odmap.csv").set_index("element")["content"]
    assert protocol["Cleaning and filtering"] == "institutions UKBMS, min records 200"
    assert protocol["Algorithm"].startswith("linear (penalty 0.03")
    assert protocol["Authorship"] == TO_FILL
    assert "133 training, 67 validation" in protocol["Partitioning"]


def test_the_markdown_says_the_same(findings):
    text = to_markdown([findings])
    assert (
        sentences(findings)[0] in text and "| mean_rate |" in text and "## ODMAP protocol" in text
    )


def test_the_reader_is_warned_when_a_baseline_is_better(world):
    model = make_baseline("mean_rate").fit(world, world.split.train)
    found = collect_findings(
        model, world, EvaluateOptions(baselines=("linear",)), importance_repeats=0
    )
    assert any(
        warning.startswith("Linear predicts these sites better") for warning in warnings_of(found)
    )
    options = EvaluateOptions(part="train", baselines=())
    fitted_to = collect_findings(model, world, options, importance_repeats=0)
    assert any("the model was fitted to" in warning for warning in warnings_of(fitted_to))


def test_several_runs_stand_beside_each_other(findings, world, tmp_path):
    other = replace(findings, name="Other")
    other = replace(
        other,
        scores=replace(other.scores, beside=other.scores.beside.rename(index={"Linear": "Other"})),
    )
    page = write_report([findings, other], tmp_path / "r.html").read_text()
    assert page.count('class="self"') == 2
    with pytest.raises(DataError, match="nothing to report"):
        write_report([], tmp_path / "r.html")
    with pytest.raises(DataError, match="report them one by one"):
        write_report([findings, replace(findings, part="test")], tmp_path / "r.html")


def test_every_dot_of_the_page_tells_what_it_is(findings, tmp_path):
    page = write_report(findings, tmp_path / "r.html").read_text()
    pictures = re.findall(r"<svg.*?</svg>", page)
    assert len(pictures) == 8 and all("aria-label=" in picture for picture in pictures)
    told = [[*re.findall(r"<title>(.*?)</title>", picture)] for picture in pictures]
    assert sum("times better" in title for titles in told for title in titles) == 67
    assert any(title.startswith("Species 0: seen ") for titles in told for title in titles)
    again = write_report(findings, tmp_path / "again.html").read_text()
    assert again == page


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_the_page_works_in_a_browser_and_fits_a_phone(findings, tmp_path):
    path = write_report(findings, tmp_path / "report.html")
    # The page is asked for its own width after its script has run.
    probe = (
        "<script>document.title = `${document.documentElement.scrollWidth} of "
        "${innerWidth}`;</script></body>"
    )
    path.write_text(path.read_text().replace("</body>", probe))
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=360,800",
        "--dump-dom",
        path.as_uri(),
    ]
    page = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    options = page.split('id="pick"')[1].split("</select>")[0]
    assert options.count("<option") == len(findings.dataset.species)
    assert f"{len(findings.dataset.species)} of {len(findings.dataset.species)} species" in page
    assert "Recorded at" in page.split('id="picked"')[1].split("</p>")[0]
    width, window = re.search(r"<title>(\d+) of (\d+)</title>", page).groups()
    assert int(width) <= int(window)
