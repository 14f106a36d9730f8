"""The published records give the published table."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_prep.records.count import SurveyTable, read_survey
from data_prep.records.options import RecordsOptions


@pytest.fixture(scope="module")
def presence(shared: Path) -> pd.DataFrame:
    return pd.read_csv(shared / "data/s2bms/presence.csv").set_index("site_id")


@pytest.fixture(scope="module")
def real(
    shared: Path, presence: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> SurveyTable:
    folder = shared / "data/s2bms"
    config = RecordsOptions(
        path=folder / "records_dwca.zip",
        sites=folder / "sites.csv",
        species=tuple(presence.columns[2:-1]),
        institutions=("UKBMS",),
        years=(2018, 2019),
        min_records=200,
        max_footprint_deg2=0.0002,
    )
    return read_survey(config, scratch=tmp_path_factory.mktemp("records"))


@pytest.mark.shared
def test_every_rate_and_every_number_of_visits_is_the_published_one(
    real: SurveyTable, presence: pd.DataFrame
) -> None:
    assert set(real.sites.index) == set(presence.index)
    rates = real.rates.loc[presence.index]
    assert np.abs(rates.to_numpy() - presence[list(real.species)].to_numpy()).max() <= 1e-12
    assert (real.visits.loc[presence.index] == presence["n_visits"]).all()
    assert np.allclose(
        real.sites.loc[presence.index, ["lon", "lat"]], presence[["lon", "lat"]], atol=1e-5
    )


@pytest.mark.shared
def test_every_row_of_the_published_records_is_accounted_for(real: SurveyTable) -> None:
    dropped = {key: rows for key, rows in real.rows.items() if key.startswith("dropped")}
    assert real.rows["read"] == 378_399 == real.rows["kept"] + sum(dropped.values())
    assert dropped["dropped: another institution"] == 3_000
    assert dropped["dropped: no coordinates"] == 2_000
    assert dropped["dropped: outside the years"] == 18_000
    assert real.years == (2018, 2019)
