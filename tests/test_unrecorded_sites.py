"""
Sites without a visit are there to be predicted; nothing learns from them, and no score counts them.
"""

from dataclasses import replace

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest

from butterfly_sdm.baselines import make_baseline
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.leakage import leakage_report
from butterfly_sdm.data.splits import Split
from butterfly_sdm.errors import ConfigError, DataError
from butterfly_sdm.evaluation import evaluate_run
from butterfly_sdm.evaluation.options import EvaluateOptions
from butterfly_sdm.models.network_predictor import NetworkPredictor
from data_prep.build import build_dataset
from data_prep.checking import check_dataset
from tests.data_prep.records.making_records import row, square, text
from tests.data_prep.surveys import make_config
from tests.evaluation.worlds import small_world


@pytest.fixture
def listed(tmp_path):
    """
    Return a function that writes records of sites 0 to 5 and a list of sites 0 to 8, and builds
    with some settings.
    """
    records = tmp_path / "records.tsv"
    records.write_text(
        text([row(site, f"2018-06-{day:02d}") for site in range(6) for day in range(1, 4 + site)])
    )
    rows = ["site_id,footprint_wkt,split"]
    rows += [
        f'L{site},"{square(round(site * 0.02, 5))}",{("train", "val", "test")[site // 3]}'
        for site in range(9)
    ]
    sites = tmp_path / "sites.csv"
    sites.write_text("\n".join([*rows, "L9,,test"]) + "\n")

    def build(name: str = "out", split: dict | None = None, **section) -> Dataset:
        section = {
            "path": str(records),
            "format": "table",
            "min_records": 1,
            "sites": str(sites),
        } | section
        split = {"method": "file", "path": str(sites)} if split is None else split
        config = make_config(records=section, split=split)
        return Dataset.open(build_dataset(config, tmp_path / name, name="test", seed=0))

    return build


def test_listed_sites_without_records_are_left_out_unless_they_are_asked_for(listed, tmp_path):
    assert listed("without").site_ids == tuple(f"L{site}" for site in range(6))
    dataset = listed(unrecorded="keep")
    assert dataset.site_ids == tuple(f"L{site}" for site in range(9))
    assert dataset.visits.tolist() == [3, 4, 5, 6, 7, 8, 0, 0, 0]
    assert dataset.split.test == ("L6", "L7", "L8")
    assert dataset.rates.loc[list(dataset.split.test)].isna().all(axis=None)
    assert dataset.sites.loc["L7", "lon"] == pytest.approx(0.145)
    assert any(
        note.startswith("3 listed sites without a counted record are kept")
        for note in dataset.card.notes
    )
    assert any(
        note.startswith("1 listed sites are left out because") for note in dataset.card.notes
    )
    assert check_dataset(tmp_path / "out") == []


def test_sites_whose_records_are_too_few_come_back_without_visits(listed):
    dataset = listed(min_records=5, unrecorded="keep")
    assert dataset.visits.tolist() == [0, 0, 5, 6, 7, 8, 0, 0, 0]
    assert not dataset.detections.iloc[:2].any(axis=None)


def test_a_split_that_is_dealt_out_leaves_sites_without_visits_in_no_part(listed):
    dataset = listed(
        split={"method": "blocks", "distance_m": 1000, "fractions": [0.5, 0.5, 0]},
        unrecorded="keep",
    )
    assert sorted(dataset.split.part_of()) == [f"L{site}" for site in range(6)]
    assert (dataset.sites["block"] == -1).tolist() == [False] * 6 + [True] * 3


def test_keeping_what_no_table_lists_is_a_mistake(listed):
    with pytest.raises(
        ConfigError, match=r"records\.unrecorded is keep, but records\.sites does not list"
    ):
        listed(sites=None, unrecorded="keep")


def with_unvisited(dataset: Dataset, number: int = 30) -> Dataset:
    """Return the data set with more sites, a third in each part, of which nothing is known."""
    random = np.random.default_rng(9)
    ids = pd.Index([f"x{i:03d}" for i in range(number)], name="site_id")
    more = (
        dataset.sites.iloc[:number]
        .set_axis(ids)
        .assign(
            visits=0,
            easting=random.uniform(0, 1e5, number),
            northing=random.uniform(0, 1e5, number),
        )
    )
    third = number // 3
    split = dataset.split
    return replace(
        dataset,
        sites=gpd.GeoDataFrame(pd.concat([dataset.sites, more]), geometry="geometry", crs=4326),
        detections=pd.concat(
            [dataset.detections, pd.DataFrame(0, index=ids, columns=dataset.detections.columns)]
        ),
        covariates=pd.concat(
            [dataset.covariates, dataset.covariates.iloc[:number].set_axis(ids) + 1]
        ),
        split=Split(
            (*ids[:third], *split.train),
            (*split.validation, *ids[third : 2 * third]),
            tuple(ids[2 * third :]),
        ),
    )


MAKERS = {
    "mean_rate": lambda: make_baseline("mean_rate"),
    "nearest_sites": lambda: make_baseline("nearest_sites"),
    "trees": lambda: make_baseline("trees", trees=20, seed=0),
    "network": lambda: NetworkPredictor(
        image=False, covariates=True, position=True, embedding=8, head_width=8, epochs=2, seed=0
    ),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_learned_and_scored_is_the_same_with_and_without_them(kind):
    dataset, _ = small_world(sites=90, species=4)
    more = with_unvisited(dataset)
    results = []
    for data in (dataset, more):
        predictor = MAKERS[kind]().fit(data, data.split.train)
        results.append(
            (predictor.predict(dataset, dataset.split.validation), evaluate_run(predictor, data))
        )
        if data is more:
            new = predictor.predict(more, more.split.test)
            assert new.to_numpy().min() >= 0
            assert new.notna().all(axis=None)
            assert new.to_numpy().max() <= 1
    pd.testing.assert_frame_equal(results[0][0], results[1][0])
    pd.testing.assert_series_equal(results[0][1].overall, results[1][1].overall)
    assert len(results[1][1].per_site) == len(dataset.split.validation)


def test_a_part_without_any_visit_cannot_be_scored():
    dataset = with_unvisited(small_world(sites=60, species=3)[0])
    predictor = MAKERS["mean_rate"]().fit(dataset, dataset.split.train)
    with pytest.raises(DataError, match="None of the 10 sites"):
        evaluate_run(predictor, dataset, EvaluateOptions(part="test"))


def test_leakage_counts_no_training_site_without_a_visit():
    dataset, _ = small_world(sites=60, species=3)
    more = with_unvisited(dataset)
    alone, beside = leakage_report(dataset, tile_m=5000), leakage_report(more, tile_m=5000)
    of_validation = beside.distances["site"].isin(dataset.split.validation)
    pd.testing.assert_frame_equal(
        alone.distances, beside.distances[of_validation], check_index_type=False
    )
    assert not set(beside.leaking_sites) & set(more.split.train[:10])
    pd.testing.assert_series_equal(alone.prevalence["validation"], beside.prevalence["validation"])
