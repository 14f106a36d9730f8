"""
What the policy for sensitive species holds back is in no byte that the verbs write, and in no word
that they say.
"""

import io
import shutil
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import rasterio
import yaml
from typer.testing import CliRunner

from butterfly_sdm.cli import app
from butterfly_sdm.config import load_config
from tests.trust import faults

WITHHELD, COARSE, UNMAPPED = "Maculinea arion", "Carterocephalus palaemon", "Pieris rapae"
# the name, and the places
SECRETS = (
    "arion",
    "51.30717",
    "-2.31919",
    "51.30919",
    "-2.31717",
    "ST7771",
    "51.3081",
    "-2.3181",
)
PLACE = (
    "POLYGON((-2.31919 51.30717,-2.31919 51.30919,-2.31717 51.30919,-2.31717 51.30717,-2.31919 "
    "51.30717))"
)


def _with_sensitive_records(archive: Path) -> None:
    """
    Add records of two sensitive species: at sites of others, at a place of their own, and with
    dates nobody can read.
    """
    with zipfile.ZipFile(archive) as source:
        members = {name: source.read(name) for name in source.namelist()}
    table = pd.read_csv(
        io.BytesIO(members["occurrence.txt"]), sep="\t", dtype=str, keep_default_na=False, quoting=3
    )
    shared = table.iloc[[0, 40, 80]]
    alone = table.iloc[[0, 1]].assign(
        decimalLatitude="51.30818", decimalLongitude="-2.31818", footprintWKT=PLACE
    )
    unreadable = alone.assign(eventDate="some day", year="", month="", day="")
    added = []
    for species in (WITHHELD, COARSE):
        rows = pd.concat([shared, alone, unreadable])
        added.append(
            rows.assign(
                scientificName=f"{species} (Somebody, 1758)",
                species=species,
                genus=species.split()[0],
            )
        )
    whole = pd.concat([table, *added])
    whole["gbifID"] = [str(3_000_000_000 + number) for number in range(len(whole))]
    whole["occurrenceID"] = whole["gbifID"]
    members["occurrence.txt"] = whole.to_csv(
        sep="\t", index=False, lineterminator="\n", quoting=3
    ).encode()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in members.items():
            target.writestr(name, data)


def _text(path: Path) -> str:
    """Return all that a file says: its bytes, and what is packed in them."""
    said = path.read_bytes().decode("utf-8", errors="ignore") + path.read_bytes().decode(
        "utf-16-le", errors="ignore"
    )
    if path.suffix == ".parquet":
        said += pd.read_parquet(path).to_csv()
    if path.suffix == ".tif":
        with rasterio.open(path) as source:
            said += (
                str(source.tags())
                + str(source.descriptions)
                + str([source.tags(index) for index in source.indexes])
            )
    return said + path.name


@pytest.fixture(scope="module")
def walked(finished, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """
    Run the verbs over records of sensitive species; return the folder of all that they wrote, and
    what each said.
    """

    folder = tmp_path_factory.mktemp("privacy")
    region = shutil.copytree(finished.config.parent, folder / "region")
    _with_sensitive_records(region / "records.zip")
    config = yaml.safe_load((region / "config.yaml").read_text())
    config["build"]["records"]["sensitive"] = {WITHHELD: "withhold", COARSE: "10km"}
    config["build"]["records"]["synonyms"] = {"Large Blue": WITHHELD}
    config["map"] = {"withhold": [UNMAPPED, WITHHELD.upper()], "layers": ["richness"]}
    config["plan"] = {"protected": [WITHHELD], "sites": 5}
    work = folder / "work"
    config["out"] = str(work)
    (region / "config.yaml").write_text(yaml.safe_dump(config))
    quick = [
        part
        for override in (*faults.QUICK, "train.model.kind=mean_rate")
        for part in ("--set", override)
    ]
    commands = {
        "build": [
            str(region / "config.yaml"),
            "--explain",
            f"{work}/dropped.csv",
            *quick,
        ],
        "train": [str(region / "config.yaml"), *quick],
        "evaluate": [f"{work}/run"],
        "map": [f"{work}/run", "--out", f"{work}/map.tif"],
        "report": [f"{work}/run", "--out", f"{work}/report.html"],
        "plan": [f"{work}/run", "--out", f"{work}/plan"],
        "view": [f"{work}/map.tif", "--export", f"{work}/page.html"],
        "train again": [f"{work}/run/config.yaml", "--out", f"{work}/again"],
    }
    said = {}
    for verb, arguments in commands.items():
        result = CliRunner().invoke(app, ["--verbose", verb.split()[0], *arguments])
        assert result.exit_code == 0, f"{verb}: {result.output}"
        said[f"what {verb} says"] = result.output
    return work, said


@pytest.fixture(scope="module")
def told(walked) -> dict[str, str]:
    """Return what each file and each command says."""
    work, said = walked
    said |= {
        path.relative_to(work).as_posix(): _text(path) for path in work.rglob("*") if path.is_file()
    }
    assert {"dataset/dataset.json", "run/run.json", "map.tif", "dropped.csv"} <= set(said)
    return said


@pytest.mark.parametrize("secret", SECRETS)
def test_a_withheld_name_and_a_hidden_place_are_nowhere(told, secret):
    assert not [name for name, text in told.items() if secret in text.replace("ARION", "arion")]


def test_nothing_is_built_from_settings_that_do_not_repeat_a_name(walked, tmp_path):
    """Else the species would be told; from the data set that is there the run is trained again."""
    work, said = walked
    assert "Model trained" in said["what train again says"]
    path = work / "run" / "config.yaml"
    settings = load_config(path)
    assert set(settings.build.records.sensitive) == {"name left out 1", COARSE}
    assert settings.sensitive == {UNMAPPED: None, "name left out 1": None, COARSE: 10_000.0}
    result = CliRunner().invoke(app, ["build", str(path), "--out", str(tmp_path / "dataset")])
    assert result.exit_code == 2 and not (tmp_path / "dataset").exists()
    assert "'name left out 1': these are settings of a run" in " ".join(result.output.split())


def test_a_coarsened_species_is_told_by_large_squares_alone(told):
    where = {name for name, text in told.items() if "palaemon" in text}
    assert where <= {
        "what build says",  # which species are told by squares, and of which size
        "dataset/dataset.json",
        "dataset/coarse.parquet",
        "dropped.csv",
        "run/config.yaml",
        "again/config.yaml",
        "report.html",
        "report.md",
    }
    rows = pd.read_csv(
        io.StringIO(told["dropped.csv"].split("\x00", 1)[0]),
        dtype=str,
        keep_default_na=False,
        on_bad_lines="skip",
    )
    rows = rows[rows["species"].str.contains("palaemon")]
    assert len(rows) and set(rows["gridReference"]) == {"ST75"}


def test_a_species_the_map_withholds_is_in_no_band_nor_picture_nor_style(told):
    assert not [name for name, text in told.items() if name.startswith("map") and "rapae" in text]


def test_the_secrets_would_be_found(finished, tmp_path):
    """The search sees what it looks for: the same names and places are in the records."""

    archive = shutil.copy(finished.config.parent / "records.zip", tmp_path)
    _with_sensitive_records(Path(archive))
    with zipfile.ZipFile(archive) as source:
        text = source.read("occurrence.txt").decode()
    for secret in ("arion", "51.30717", "-2.31919"):
        assert secret in text
