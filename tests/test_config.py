"""The config says which key, which value and which rule, and never guesses."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import butterfly_sdm.config as config_module
from butterfly_sdm.config import Config, dump_config, load_config, starter_yaml
from butterfly_sdm.core.settings import Section
from butterfly_sdm.errors import ButterflySDMError, ConfigError, MissingFileError

RECORDS = {"build": {"records": {"path": "records.zip"}}}


def test_an_empty_config_has_the_defaults():
    config = load_config({})
    assert config.train.model.kind == "network"
    assert config.train.fit.loss == "binomial"
    assert config.out == Path("runs/experiment")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"trian": {}}, "trian is an unknown key; did you mean 'train'"),
        (
            {"map": {"masks": ["sea.tif"]}},
            r"map\.masks = \[\"sea.tif\"\]: a mapping is needed, key: value \(raster: values left",
        ),
        (
            {"build": {"records": "records.zip"}},
            r"build\.records = \"records.zip\": a mapping is needed, with keys such as path, gbif",
        ),
        (
            {"train": {"fit": {"epoch": 3}}},
            r"train\.fit\.epoch is an unknown key; did you mean 'epochs'",
        ),
        (
            {"train": {"fit": {"epochs": "three"}}},
            r'train\.fit\.epochs = "three": input should be a valid integer',
        ),
        (
            {"train": {"fit": {"learning_rate": -1.0}}},
            r"learning_rate = -1\.0: input should be greater than 0",
        ),
        (
            {"evaluate": {"part": "tset"}},
            r"evaluate\.part = \"tset\": input should be 'train', 'validation' or 'test'",
        ),
        ({"build": {}}, r"build\.records is missing"),
        (
            {"build": {"records": {"path": "${NOT_SET_ANYWHERE}/a.zip"}}},
            "environment variable NOT_SET_ANYWHERE is not set",
        ),
        (
            {"build": {"records": {"path": "a.zip", "years": [2018, "x"]}}},
            r"build\.records\.years\.1 = \"x\"",
        ),
        ({"name": "../up"}, "name = "),
    ],
)
def test_a_wrong_config_names_key_value_and_rule(value, message):
    with pytest.raises(ConfigError, match=message):
        load_config(value)


def test_several_problems_are_told_at_once():
    with pytest.raises(ConfigError, match=r"(?s)several problems.*epochs.*batch_size"):
        load_config({"train": {"fit": {"epochs": 0, "batch_size": 0}}})


def test_relative_paths_are_relative_to_the_file(tmp_path):
    path = tmp_path / "deep" / "experiment.yaml"
    path.parent.mkdir()
    path.write_text("name: trial\nbuild:\n  records:\n    path: ../records.zip\n")
    config = load_config(path)
    assert config.build.records.path == path.parent.resolve() / "../records.zip"
    assert config.out == path.parent.resolve() / "runs" / "trial"


def test_environment_variables_stand_in_paths(monkeypatch):
    monkeypatch.setenv("MY_DATA", "/data/here")
    config = load_config({"build": {"records": {"path": "${MY_DATA}/a.zip"}}})
    assert config.build.records.path == Path("/data/here/a.zip")


def test_set_overrides_one_key_and_makes_missing_sections():
    config = load_config(RECORDS, ["train.fit.epochs=3", "build.records.years=[2018, 2019]"])
    assert config.train.fit.epochs == 3
    assert config.build.records.years == (2018, 2019)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", "is not key=value"),
        ("train.fit.epochs.x=1", "no key"),
        ("train.fit.epochs=[", "not YAML"),
    ],
)
def test_a_wrong_override_says_what_is_wrong(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config({"train": {"fit": {"epochs": 2}}}, [override])


@pytest.mark.parametrize("number", ["1e-5", "1E-5", "1.0e-05", "0.00001"])
def test_a_small_number_may_be_written_as_people_write_it(number, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"train: {{fit: {{learning_rate: {number}}}}}\n")
    assert load_config(path).train.fit.learning_rate == 1e-5
    assert load_config({}, [f"train.fit.learning_rate={number}"]).train.fit.learning_rate == 1e-5


def test_the_dumped_config_reads_back_as_itself(tmp_path):
    config = load_config(RECORDS | {"name": "trial"}, ["train.fit.regulariser.weight=0.0"])
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    again = load_config(path)
    assert again.model_dump(exclude={"build", "out"}) == config.model_dump(exclude={"build", "out"})


@pytest.mark.parametrize(
    ("imagery", "left_out"),
    [
        ({"scenes": {"paths": ["aef"], "embeddings": {}}}, {"tiles.bands"}),
        (
            {"ready_tiles": {"folder": "cut", "bands": ["red"]}},
            {"tiles.bands", "tiles.size_px", "ready_tiles.nodata"},
        ),
    ],
)
def test_what_files_tell_unless_it_is_stated_is_not_stated_by_the_dumped_config(imagery, left_out):
    records = {"records": {"path": "r.csv"}}
    config = load_config({"build": records | imagery})
    told = yaml.safe_load(dump_config(config))
    again = load_config(told)
    assert {f"{at}.{name}" for at, name in again.build.left_to_files} == left_out
    assert again.build.model_dump() == config.build.model_dump()
    assert again.build.tile_bands == config.build.tile_bands
    told["build"]["tiles"]["bands"] = ["red", "green", "blue", "nir"]  # as 0.2.0 wrote it
    assert load_config(told).build.tile_bands == config.build.tile_bands


def test_the_starter_is_short_and_reads_also_with_its_examples_uncommented(tmp_path):
    text = starter_yaml("My region!")
    assert len(text.splitlines()) < 80
    (tmp_path / "plain.yaml").write_text(text)
    plain = load_config(tmp_path / "plain.yaml")
    assert plain.name == "My_region_"
    tiles, model = plain.build.tiles, plain.train.model
    assert tiles.size_px >= model.window_px + 2 * model.margin_px
    assert plain.build.split.buffer_m >= tiles.size_px * tiles.resolution_m
    examples = re.sub(
        r"^( *)# (?=( *- |columns|grid_m|bands|covariates:|  rasters|layers))",
        r"\1",
        text,
        flags=re.MULTILINE,
    )
    examples = examples.replace(
        "    columns: {species: Taxon, date: Survey date, latitude: Lat, longitude: Lon}\n", ""
    )
    (tmp_path / "examples.yaml").write_text(examples)
    told = load_config(tmp_path / "examples.yaml")
    assert told.build.records.columns["grid_reference"] == "Grid ref"
    assert told.build.records.grid_m == 1000
    assert told.build.scenes.bands == ("red", "green", "blue", "nir")
    assert told.build.covariates.rasters[0].name == "elevation"
    assert told.map.layers == ("richness", "lower", "upper", "applicability")


def test_every_setting_says_what_it_means():
    sections = [
        value
        for value in vars(config_module).values()
        if isinstance(value, type) and issubclass(value, Section)
    ]
    silent = [
        f"{section.__name__}.{name}"
        for section in sections
        for name, field in section.model_fields.items()
        if not field.description
        and not (isinstance(field.annotation, type) and issubclass(field.annotation, Section))
    ]
    assert silent == []


def test_the_whole_starter_reads_as_a_config_also_with_every_setting_uncommented(tmp_path):
    text = starter_yaml("My region!", everything=True)
    (tmp_path / "plain.yaml").write_text(text)
    assert load_config(tmp_path / "plain.yaml").name == "My_region_"
    head, body = text.split("build:", 1)
    everything = (
        head
        + "build:"
        + "\n".join(
            line.replace("# ", "", 1) if line.lstrip().startswith("# ") else line
            for line in body.split("\n")
        )
    )
    (tmp_path / "all.yaml").write_text(everything)
    assert load_config(tmp_path / "all.yaml").train == Config().train


def test_paths_of_a_mapping_mean_the_same_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(
        {"build": {"records": {"path": "a.csv"}, "scenes": {"paths": ["../b.tif"]}}}
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(dump_config(config))
    again = load_config(tmp_path / "run" / "config.yaml")
    assert again.build.records.path == tmp_path / "a.csv"
    assert again.build.scenes.paths[0].resolve() == tmp_path.parent / "b.tif"


def test_a_missing_file_and_a_file_that_is_no_mapping_are_told(tmp_path):
    with pytest.raises(MissingFileError, match="There is no config file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("name: a\n")
    with pytest.raises(MissingFileError, match=r"is a folder. Give the YAML.*run/config\.yaml"):
        load_config(tmp_path / "run")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="a config is a mapping"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "tab.yaml").write_text("name: a\n\tb: c\n")
    with pytest.raises(ConfigError, match="is not YAML at line 2"):
        load_config(tmp_path / "tab.yaml")


def test_yaml_cannot_make_python_objects(tmp_path):
    (tmp_path / "bad.yaml").write_text("name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(tmp_path / "bad.yaml")


@settings(deadline=None)  # a busy machine is no error
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.text() | st.sampled_from(list(Config.model_fields)), inner)
        ),
        max_leaves=10,
    )
)
def test_any_yaml_is_a_config_or_a_clear_error(value):
    text = yaml.safe_dump(value)
    loaded = yaml.safe_load(text)
    if not isinstance(loaded, dict):
        return
    try:
        assert isinstance(load_config(loaded), Config)
    except ButterflySDMError as error:
        assert str(error)
