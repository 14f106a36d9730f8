"""
One YAML file per experiment: a section per verb, checked strictly.

Every wrong key, type or value is one :class:`~butterfly_sdm.errors.ConfigError` that names the key,
the value and the rule. Relative paths are relative to the YAML file; ``${NAME}`` in a path stands
for an environment variable.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from butterfly_sdm.core.settings import (
    InputPath,
    Section,
    commented,
    load_settings,
)
from butterfly_sdm.data.options import SplitOptions
from butterfly_sdm.evaluation.options import EvaluateOptions
from butterfly_sdm.imagery.options import SceneOptions
from butterfly_sdm.mapping.options import MapOptions
from butterfly_sdm.models.options import (
    FitOptions,
    ModelOptions,
    RegulariserOptions,
    SearchOptions,
)
from data_prep.imagery.options import TileOptions
from data_prep.options import BuildOptions, CovariateOptions
from data_prep.records.options import RecordsOptions


class TrainOptions(Section):
    """train: data set -> run."""

    dataset: InputPath | None = Field(None, description="null: the one that build makes")
    model: ModelOptions = ModelOptions()
    fit: FitOptions = FitOptions()


class Config(Section):
    """One experiment."""

    name: str = Field(
        "experiment", pattern=r"^[\w.-]+$", description="letters, digits, dot, dash, underscore"
    )
    seed: int = Field(
        0,
        ge=0,
        description="deals blocks to parts, starts networks: the same seed gives the same result",
    )
    out: InputPath | None = Field(
        None, description="folder of the artefacts; null: runs/NAME beside the YAML"
    )
    build: BuildOptions | None = Field(
        None, description="null: the data set is there already (train.dataset)"
    )
    train: TrainOptions = TrainOptions()
    search: SearchOptions = SearchOptions()
    evaluate: EvaluateOptions = EvaluateOptions()
    map: MapOptions = MapOptions()


ConfigLike = str | Path | Mapping[str, Any] | Config


def load_config(source: ConfigLike, overrides: Iterable[str] = ()) -> Config:
    """
    Read and check a config.

    Parameters
    ----------
    source
        YAML file, or its content as a mapping (paths then relative to the working directory).
    overrides
        ``key=value`` pairs with dotted keys, values as YAML: ``train.fit.epochs=3``.

    Returns
    -------
    Config
        Checked; ``out`` is filled in.

    Raises
    ------
    MissingFileError
        The file does not exist.
    ConfigError
        It is not YAML, or a key, type or value is wrong.

    Examples
    --------
    >>> load_config({"name": "trial"}, ["train.fit.epochs=3"]).train.fit.epochs
    3
    """
    value = (
        source.model_dump(mode="json", exclude_unset=True) if isinstance(source, Config) else source
    )
    config, base = load_settings(Config, value, overrides, example="train.fit.epochs=3")
    return (
        config
        if config.out is not None
        else config.model_copy(update={"out": Path(base or ".", "runs", config.name)})
    )


def dump_config(config: Config) -> str:
    """
    Return the resolved config as YAML: all defaults spelled out, all paths absolute or as given.
    """
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


STARTER = """\
# From your records and satellite scenes to a map. What you must change is marked with <--; the rest is a good start.
# Paths are relative to this file; ${{VARIABLE}} in a path stands for an environment variable.
# All settings with their defaults: butterfly-sdm init --all

name: {name}

build:
  records:
    path: records.zip         # <-- Darwin Core Archive as GBIF and NBN Atlas give it, or a table: CSV, TSV, Parquet
    # Columns of a table are recognised by their names. If build does not know yours, say which is which (ours: yours):
    # columns: {{species: Taxon, date: Survey date, grid_reference: Grid ref}}
    # columns: {{species: Taxon, date: Survey date, latitude: Lat, longitude: Lon}}
    years: [2018, 2019]       # <-- first and last year: those that the scenes show
    min_records: 0            # fewest rows of a site
    min_visits: 5             # fewest visits of a site: on few visits chance decides
    # If places are points, make sites of the squares of the British or Irish grid that hold them:
    # grid_m: 1000

  scenes:
    paths: [scene.tif]        # <-- GeoTIFFs of the same ground; several form one mosaic
    # If the files do not name their bands, name them in the order of the file (build says if it needs this):
    # bands: [red, green, blue, nir]

  tiles:
    size_px: 224              # ground around each site: 224 pixels of 10 m; at least window_px + 2 * margin_px

  # Numbers per site that the image does not show, from rasters in any CRS:
  # covariates:
  #   rasters:
  #     - {{path: elevation.tif, name: elevation, unit: m}}

  split:
    method: blocks            # squares of ground: neighbours fall into the same part
    distance_m: 5000          # their side; with less than some ten squares, take smaller ones
    buffer_m: 2300            # training sites nearer than this to held-out ones are left out: tiles share hardly any ground

train:
  model:
    kind: network             # or trees, nearest_sites, linear, ...: the baselines are models too
    window_px: 96             # ground the prediction speaks of: about the square of a kilometre that people survey
    margin_px: 64             # surroundings it sees beside; with less, the quick way of mapping differs more
    covariates: false         # true: the network sees the covariates as well
  fit:
    epochs: 20                # times that it sees every site; train says if more may help
    batch_size: 32
    regulariser:
      weight: 0.1             # 0 switches the contrastive term off
      bottom: 16              # sites of a batch that push each one away

evaluate:
  part: validation            # look at test once, at the end
  baselines: [mean_rate, nearest_sites]

map:
  stride_px: 32               # a prediction every 32 pixels: 320 m
  # area: region.gpkg         # polygons outside which nothing is mapped: cut the sea away, a network has an answer there too
  # layers: [richness, applicability]   # more bands: expected species per visit; how unlike the training sites a place is
"""


def starter_yaml(name: str = "my_region", *, everything: bool = False) -> str:
    """
    Return a commented starter YAML for own data.

    Parameters
    ----------
    name
        Name of the experiment; letters a name cannot have become underscores.
    everything
        Every setting with its default and meaning, instead of those that most people change.

    Returns
    -------
    str
        YAML that :func:`load_config` accepts.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", name) or "my_region"
    if not everything:
        return STARTER.format(name=name)
    lines = [
        "# All settings of an experiment: scenes + records -> data set -> run -> scores -> map.",
        "# Lines that begin with '# ' followed by a key are settings at their default: uncomment "
        "one to change it.",
        "# Paths are relative to this file; ${VARIABLE} in a path stands for an environment "
        "variable.",
        "",
        f"name: {name}",
        *commented(Config, 0, skip={"name", "build"}),
        "",
        "build:",
        "  records:",
        "    path: records.zip    # archive or table of records, or several",
        *commented(RecordsOptions, 4, skip={"path"}),
        "  scenes:",
        "    paths: [scene.tif]    # rasters or products; together they form one mosaic",
        *commented(SceneOptions, 4, skip={"paths"}),
    ]
    for key, section in (
        ("tiles", TileOptions),
        ("covariates", CovariateOptions),
        ("split", SplitOptions),
    ):
        lines += [f"  # {key}:", *commented(section, 4)]
    lines += commented(
        BuildOptions, 2, skip={"records", "scenes", "tiles", "ready_tiles", "covariates", "split"}
    )
    lines += [
        "",
        "train:",
        *commented(TrainOptions, 2),
        "  model:",
        "    kind: network",
        *commented(ModelOptions, 4, skip={"kind"}),
    ]
    lines += ["  fit:", "    epochs: 50", *commented(FitOptions, 4, skip={"epochs", "regulariser"})]
    lines += ["    # regulariser:", *commented(RegulariserOptions, 6)]
    lines += ["", "evaluate:", "  part: validation", *commented(EvaluateOptions, 2, skip={"part"})]
    lines += [
        "",
        "map:",
        "  stride_px: 32",
        *commented(MapOptions, 2, skip={"stride_px", "scenes"}),
    ]
    return "\n".join(lines) + "\n"
