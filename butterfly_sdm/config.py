"""
One YAML file per experiment: a section per verb, checked strictly.

Every wrong key, type or value is one :class:`~butterfly_sdm.errors.ConfigError` that names the key,
the value and the rule. Relative paths are relative to the YAML file; ``${NAME}`` in a path stands
for an environment variable.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from butterfly_sdm.community.options import CommunityOptions
from butterfly_sdm.core.settings import InputPath, Section, commented, load_settings, unset
from butterfly_sdm.data.options import SplitOptions
from butterfly_sdm.errors import MissingPackageError
from butterfly_sdm.evaluation.options import EvaluateOptions
from butterfly_sdm.imagery.options import SceneOptions
from butterfly_sdm.losses.options import RegulariserOptions
from butterfly_sdm.mapping.options import MapOptions
from butterfly_sdm.models.options import (
    FitOptions,
    ModelOptions,
    SearchOptions,
    TrainOptions,
)
from butterfly_sdm.planning.options import PlanOptions, ReplayOptions

try:
    from data_prep.imagery.options import TileOptions
    from data_prep.options import BuildOptions, CovariateOptions
    from data_prep.records.options import RecordsOptions
except ImportError as error:
    import data_prep

    places = [str(place) for place in getattr(data_prep, "__path__", ())]
    if any((Path(place) / "workbench.py").is_file() for place in places):
        raise
    raise MissingPackageError(
        f"{places[0] if places else data_prep} is taken for the package data_prep, which comes "
        "with butterfly_sdm and has the same name. Rename that folder, or start elsewhere."
    ) from error


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
    community: CommunityOptions | None = Field(
        None,
        description="fitted after the model, by that many more fits; null: butterfly-sdm community "
        "RUN does it",
        exclude_if=unset,
    )
    plan: PlanOptions = PlanOptions()

    @property
    def sensitive(self) -> dict[str, float | None]:
        """
        The species that the data set or the map tells coarsely or not at all: the side of their
        squares in metres, None where nothing may be told.
        """
        policy: dict[str, float | None] = dict.fromkeys(self.map.withhold)
        policy |= self.map.coarsen_m
        if self.build is not None:
            for name, action in self.build.records.sensitive.items():
                side = re.fullmatch(r"(\d+)km", action)
                policy[name] = float(side[1]) * 1000 if side else None
        return policy


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
    Return the resolved config as YAML: all defaults spelled out but those that files of imagery
    tell, all paths absolute or as given.

    The name of a withheld species is not told: it must not travel with a run. Building from such a
    config asks for it.
    """
    settings = told_settings(config)
    for section, name in config.build.left_to_files if config.build is not None else ():
        del settings["build"][section][name]
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def told_settings(config: Config) -> dict[str, Any]:
    """Return a config as plain values without the names of withheld species."""
    settings = config.model_dump(mode="json")
    if config.build is None or "withhold" not in config.build.records.sensitive.values():
        return settings
    from data_prep.records.sensitive import without_withheld  # loads geopandas

    return without_withheld(settings, config.build.records)


def starter_yaml(
    name: str = "my_region",
    *,
    everything: bool = False,
    records: Sequence[str] = (),
    scenes: Sequence[str] = (),
) -> str:
    """
    Return a commented starter YAML for own data.

    Parameters
    ----------
    name
        Name of the experiment; letters a name cannot have become underscores.
    everything
        Every setting with its default and meaning, instead of those that most people change.
    records, scenes
        Lines of YAML that take the place of the starter's own in ``build.records`` and
        ``build.scenes``, as :attr:`data_prep.look.look.Look.yaml` has them.

    Returns
    -------
    str
        YAML that :func:`load_config` accepts.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", name) or "my_region"
    if not everything:
        text = resources.files("butterfly_sdm").joinpath("starter.yaml").read_text("utf-8")
        text = text.replace("name: my_region", f"name: {name}", 1)
        for part, filled in (("records", records), ("scenes", scenes)):
            if filled:
                text = _with_section(text, part, filled)
        return text
    lines = [ABOUT_ALL, f"name: {name}"]
    for opening, section, indent, skip in ALL_SECTIONS:
        lines += [opening] * bool(opening) + commented(section, indent, skip=skip.split())
    return "\n".join(lines) + "\n"


def _with_section(text: str, section: str, lines: Sequence[str]) -> str:
    """Put lines in the place of those of a section of ``build``."""
    before, opening, rest = text.partition(f"  {section}:\n")
    after = rest.partition("\n\n")[2]
    return before + opening + "\n".join(lines) + "\n\n" + after


ABOUT_ALL = """\
# All settings of an experiment: scenes + records -> data set -> run -> scores -> map.
# Lines that begin with '# ' followed by a key are settings at their default: uncomment one to \
change it.
# Paths are relative to this file; ${VARIABLE} in a path stands for an environment variable.
"""
# What opens a section in the YAML of all settings, the section, its indent, settings not listed.
ALL_SECTIONS: tuple[tuple[str, type[Section], int, str], ...] = (
    ("", Config, 0, "name build community"),
    ("\nbuild:\n  records:\n    path: records.zip    # or several", RecordsOptions, 4, "path"),
    ("  scenes:\n    paths: [scene.tif]    # together one mosaic", SceneOptions, 4, "paths"),
    ("  # tiles:", TileOptions, 4, ""),
    ("  # covariates:", CovariateOptions, 4, ""),
    ("  # split:", SplitOptions, 4, ""),
    ("", BuildOptions, 2, "records scenes tiles ready_tiles covariates split"),
    ("\ntrain:", TrainOptions, 2, ""),
    ("  model:\n    kind: network", ModelOptions, 4, "kind"),
    ("  fit:\n    epochs: 50", FitOptions, 4, "epochs regulariser"),
    ("    # regulariser:", RegulariserOptions, 6, ""),
    ("\nevaluate:\n  part: validation", EvaluateOptions, 2, "part"),
    ("\nmap:\n  stride_px: 32", MapOptions, 2, "stride_px scenes"),
    ("\n# community:", CommunityOptions, 2, ""),
    ("\nplan:\n  sites: 20", PlanOptions, 2, "sites"),
    ("  # replay:", ReplayOptions, 4, ""),
)
