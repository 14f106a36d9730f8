"""
The four verbs: config in, artefact out.

The command line, a notebook and a test call these same functions. Each takes a config (a YAML file,
a mapping or a :class:`~butterfly_sdm.config.Config`) or the artefact of an earlier stage, and
returns an object that knows where its artefact lies. Work that was interrupted continues; work that
is done is not done again.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from butterfly_sdm.checking import check as check
from butterfly_sdm.config import Config, ConfigLike, dump_config, load_config, told_settings
from butterfly_sdm.core.cards import fingerprint, is_whole
from butterfly_sdm.core.files import write_text
from butterfly_sdm.core.threads import fixed_threads
from butterfly_sdm.core.work import exclusive, resumable_folder, tidy
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import FitContext, Predictor
from butterfly_sdm.errors import (
    ArtefactError,
    ButterflySDMError,
    ConfigError,
    MissingFileError,
)
from butterfly_sdm.imagery.options import SceneOptions
from butterfly_sdm.places import fit_community, needed_community, new_records
from butterfly_sdm.predictors import make_predictor
from butterfly_sdm.progress import Progress, silent, told_once
from butterfly_sdm.run import Run, dataset_of, finish_run, open_run, out_folder
from butterfly_sdm.season.use import used_season

if TYPE_CHECKING:
    import pandas as pd
    from shapely import Polygon

    from butterfly_sdm.community.given import Given
    from butterfly_sdm.evaluation import Scores
    from butterfly_sdm.imagery.scene import Scene
    from butterfly_sdm.mapping import MapResult
    from butterfly_sdm.mapping.community import NewRecords
    from butterfly_sdm.mapping.options import CovariateRaster
    from butterfly_sdm.mapping.viewer import SitesSeen
    from data_prep.look.look import Look

log = logging.getLogger("butterfly_sdm")


def look(
    paths: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> Look:
    """
    Tell what files of records or scenes hold, as they are understood, before anything is built.

    Parameters
    ----------
    paths
        Files or folders: rasters together as one scene, all others together as records.
    out
        Folder for pictures: ``records.png``, ``scene.png``, and ``build.yaml`` to go on from.
    format, columns
        Of the records, as in ``build.records``.

    Returns
    -------
    Look
        What each column means, names, dates and places as they were read, visits, sites and
        species, what would be left out and why, and the lines of YAML to paste.

    Raises
    ------
    MissingFileError
        A file does not exist.

    Examples
    --------
    >>> print(look(["records.csv", "scene.tif"]))  # doctest: +SKIP
    """
    from data_prep.look.look import look as look_at

    given = [paths] if isinstance(paths, str | Path) else paths
    found = look_at(
        [Path(path) for path in given], format=format, columns=columns, progress=progress
    )
    if out is not None:
        from butterfly_sdm.figures import show_preview, show_records

        folder = Path(out)
        if found.records is not None and (table := found.records.table) is not None:
            picture = show_records(table.sites, table.visits, table.detections)
            picture.save(folder / "records.png")
        if found.scene is not None and found.scene.picture is not None:
            preview = show_preview(found.scene.picture, "the middle of the scene, stretched")
            preview.save(folder / "scene.png")
        write_text(folder / "build.yaml", found.yaml)
    return found


def build(
    config: ConfigLike,
    out: str | Path | None = None,
    *,
    explain: str | Path | None = None,
    overrides: Iterable[str] = (),
    progress: Progress = silent,
) -> Dataset:
    """
    Turn scenes and records into a data set.

    Parameters
    ----------
    config
        Config with a section ``build``.
    out
        Folder of the data set; by default ``dataset`` in the config's ``out``.
    explain
        A ``.csv`` or ``.parquet`` file in which to write every record that was left out, with the
        reason.

    Returns
    -------
    Dataset
        The finished data set, opened from its folder.

    Raises
    ------
    ConfigError, MissingFileError, RecordsError, RasterError, DataError
        A setting, a file or the data in it is wrong.
    SourceError, MissingPackageError
        Records or scenes that the config fetches cannot be fetched.

    Examples
    --------
    >>> dataset = build("config.yaml")  # doctest: +SKIP
    """
    from data_prep.build import build_dataset

    settings = load_config(config, overrides)
    if settings.build is None:
        raise ConfigError(
            "The config has no section build. It needs build.records and where the imagery lies."
        )
    folder = Path(out) if out is not None else out_folder(settings) / "dataset"
    left_out = None if explain is None else Path(explain)
    build_dataset(
        settings.build,
        folder,
        name=settings.name,
        seed=settings.seed,
        progress=progress,
        explain=left_out,
    )
    write_text(_settings_mark(folder), "\n".join(_settings_keys(settings)))
    return Dataset.open(folder)


def train(
    config: ConfigLike,
    out: str | Path | None = None,
    *,
    dataset: Dataset | str | Path | None = None,
    overrides: Iterable[str] = (),
    progress: Progress = silent,
) -> Run:
    """
    Fit the model of the config to the training part of the data set.

    Parameters
    ----------
    config
        Config; its section ``train`` says which model and how.
    out
        Folder of the run; by default ``run`` in the config's ``out``.
    dataset
        A data set or its folder; by default ``train.dataset``, else the one that :func:`build`
        makes with this config.

    Returns
    -------
    Run
        The finished run. One that is there already, its model made with the same settings and
        data, is not trained again; it takes the other settings, as of ``map``, from the config.

    Raises
    ------
    ConfigError, DataError, ModelError, MissingFileError
        A setting is wrong, or the data set does not serve this model.
    """
    settings = load_config(config, overrides)
    folder = Path(out) if out is not None else out_folder(settings) / "run"
    data = dataset_for(settings, dataset, progress)
    split = data.needed_split()
    model, fit = settings.train.model, settings.train.fit
    key = fingerprint(
        {
            "model": model.model_dump(),
            "fit": fit.model_dump(),
            "seed": settings.seed,
            "dataset": data.fingerprint,
        }
        | {"split": [split.train, split.validation, split.test]}
        | ({} if settings.train.season is None else {"season": settings.train.season.model_dump()})
        | ({} if settings.train.threads is None else {"threads": settings.train.threads})
    )
    with fixed_threads(settings.train.threads):
        if _is_trained(folder, key):
            tidy(folder)
        else:
            _fit_into(folder, key, settings, data, progress)
        run = Run.open(folder).with_settings(settings)
        if settings.community is not None:
            fit_community(run, dataset=data, progress=progress)
    return run


def _is_trained(folder: Path, key: str) -> bool:
    """Return whether a whole run of this key lies in ``folder``."""
    if not (folder / "run.json").is_file():
        return False
    try:
        held = Run.open(folder).card.get("key")
    except ArtefactError as error:
        log.warning("The run there cannot be read and is trained again: %s", error)
        return False
    return held == key and is_whole(folder / "run.json", f"The run {folder}")


def _fit_into(folder: Path, key: str, settings: Config, data: Dataset, progress: Progress) -> None:
    split = data.needed_split()
    season = used_season(settings.train.season, data, split.train)
    predictor = make_predictor(settings.train.model, settings.train.fit, settings.seed, season)
    with resumable_folder(folder, key) as partial:
        write_text(partial / "config.yaml", dump_config(settings))
        split.to_json(partial / "split.json")
        context = FitContext(split.validation, partial, progress)
        predictor.fit(data, split.train, context=context)
        predictor.save(partial)
        # They serve to resume, and are several times the model.
        for checkpoints in list(partial.rglob("checkpoints")):
            shutil.rmtree(checkpoints)
        finish_run(partial, folder, data, settings, key, season=season)


def evaluate(
    run: Run | ConfigLike,
    out: str | Path | None = None,
    *,
    dataset: Dataset | str | Path | None = None,
    overrides: Iterable[str] = (),
    progress: Progress = silent,
) -> Scores:
    """
    Score a run beside the baselines on sites it has not seen.

    Parameters
    ----------
    run
        A run, its folder, or the config it was made with.
    out
        Folder of the tables and plots; by default the run's own.
    dataset
        The data set, if it has moved.

    Returns
    -------
    Scores
        One row per predictor, with tables per species and per site.

    Raises
    ------
    ArtefactError
        Another process is writing into the folder.
    """
    from butterfly_sdm.evaluation import evaluate_run

    opened, settings = open_run(run, overrides)
    data = dataset_of(opened, dataset)
    folder = Path(out) if out is not None else opened.folder
    with exclusive(folder), fixed_threads(settings.train.threads):
        return evaluate_run(
            opened.predictor,
            data,
            settings.evaluate,
            split=opened.split,
            folder=folder,
            seed=settings.seed,
            progress=progress,
        )


def embed(
    scenes: Sequence[str | Path],
    out: str | Path,
    *,
    weights: str,
    backbone: str = "vit_small_patch16_224",
    like: str | None = None,
    bands: Sequence[str] | None = None,
    progress: Progress = silent,
) -> Path:
    """
    Embed a scene with a frozen foundation model: a GeoTIFF with a pixel per patch and a band per
    dimension, which ``build.scenes`` with ``embeddings`` reads.

    Parameters
    ----------
    scenes
        Rasters; together one mosaic.
    out
        Where the GeoTIFF shall lie.
    weights
        Local file, or the name of torchgeo's weights.
    backbone
        Transformer or other trunk of timm or torchgeo.
    like
        Name of torchgeo's weights whose bands were standardised alike; None: ``weights`` itself.
    bands
        Names of the scenes' bands in file order; None: as the files say.

    Returns
    -------
    Path
        The GeoTIFF.

    Raises
    ------
    MissingFileError, MissingPackageError, RasterError, ModelError
        A file, package or band is missing, or nobody says how the bands are standardised.
    """
    from butterfly_sdm.imagery.scene import open_scene
    from butterfly_sdm.models.foundation.embedder import embed_scene
    from butterfly_sdm.models.foundation.options import EmbedOptions, InputOptions

    inputs = None if like is None else InputOptions(like=like)
    options = EmbedOptions(weights=weights, backbone=backbone, inputs=inputs)
    return embed_scene(open_scene(scenes, bands=bands), out, options, progress=progress)


def predict_map(
    run: Run | ConfigLike,
    scenes: Sequence[str | Path] | None = None,
    out: str | Path | None = None,
    *,
    bands: Sequence[str] | None = None,
    given: str | Path | pd.DataFrame | Given | None = None,
    dataset: Dataset | str | Path | None = None,
    overwrite: bool = False,
    overrides: Iterable[str] = (),
    progress: Progress = silent,
) -> MapResult:
    """
    Map every species of a run over scenes.

    Parameters
    ----------
    run
        A run, its folder, or the config it was made with.
    scenes
        Rasters that together form one mosaic; by default those of ``map.scenes``, else of
        ``build.scenes``.
    out
        The GeoTIFF; by default ``map.tif`` beside the run.
    bands
        Names of the scenes' bands in file order, where the files do not name them.
    given
        What was seen at places that are no training sites, a file or a table (records, columns) as
        :func:`~butterfly_sdm.places.predict` takes it: it moves the map around them.
    dataset
        The data set of the run, if it has moved: it says how good the map is, and where it applies.
    overwrite
        Whether a finished map of other settings is replaced.

    Returns
    -------
    MapResult
        Where the map lies and what it holds. It carries what the held-out sites of the run say of
        each species, if the data set is where it was.

    Raises
    ------
    ConfigError, MissingFileError, RasterError, DataError, ModelError
        No scene is named, a scene or a raster of a covariate is missing or does not fit, or the run
        cannot be mapped so.
    """
    from butterfly_sdm.imagery.discovery import assumed_offsets
    from butterfly_sdm.map_of_run import MapOfRun
    from butterfly_sdm.mapping.community import RichnessInterval
    from butterfly_sdm.mapping.map import write_map
    from butterfly_sdm.mapping.plan import plan_map
    from data_prep.imagery.scenes import scene_of

    opened, settings = open_run(run, overrides)
    wanted = settings.map.scenes or (settings.build.scenes if settings.build else None)
    of_build = settings.map.scenes is None and not scenes
    if scenes or bands:
        changed: dict[str, Any] = wanted.model_dump() if wanted else {}
        if scenes:
            changed |= {"paths": tuple(scenes), "stac": None}
        if bands:
            changed["bands"] = tuple(bands)
        wanted = SceneOptions.model_validate(changed)
    if wanted is None:
        raise ConfigError("No scene to map. Name it: butterfly-sdm map RUN SCENE.tif --out MAP.tif")
    target = Path(out) if out is not None else opened.folder.parent / "map.tif"
    predictor = opened.predictor
    options = settings.map.model_copy(
        update={"covariates": _covariate_rasters(settings, predictor)}
    )
    known = MapOfRun(opened, settings, options, dataset)
    options, layers, about = known.planned()
    if "richness_interval" in options.layers:
        layers = [*layers, RichnessInterval(needed_community(opened))]
    if given is not None:
        known.check_records()
    records = None if given is None else _records(opened, settings, given, dataset, progress)

    def check_scene(scene: Scene) -> None:
        for message in assumed_offsets(scene.pieces):
            log.warning("%s", message)
        if wanted.composite and wanted.composite.mosaic:
            # what is composed where it is read is planned at once
            scene = known.as_built(scene) if of_build else scene
            chosen = known.gridded(options, scene)
            plan_map(predictor, scene, chosen, layers=[*layers, *known.applicability(scene)])

    scratch = target.parent / f".{target.stem}.scenes"
    with told_once("butterfly_sdm.mapping"), fixed_threads(settings.train.threads):
        scene, _ = scene_of(wanted, scratch=scratch, check=check_scene, progress=progress)
        scene = known.as_built(scene) if of_build else scene
        made = write_map(
            predictor,
            scene,
            target,
            known.gridded(options, scene),
            layers=[*layers, *known.applicability(scene)],
            records=records,
            about=about,
            overwrite=overwrite,
            seed=settings.seed,
            progress=progress,
        )
    if scene.supply is not None:
        scene.supply.close()
        shutil.rmtree(scratch, ignore_errors=True)
    return made


def _records(
    run: Run,
    settings: Config,
    given: str | Path | pd.DataFrame | Given,
    dataset: Dataset | str | Path | None,
    progress: Progress,
) -> NewRecords:
    """Return what was seen at places that the model of a run has not learned from."""
    from butterfly_sdm.mapping.community import NewRecords

    told, at = new_records(run, settings, given, dataset=dataset, progress=progress)
    return NewRecords(needed_community(run), told, at)


def map_to_view(
    what: str | Path, dataset: Dataset | str | Path | None = None
) -> tuple[Path, SitesSeen | None]:
    """
    Return the map that is meant, and the sites of its run if they can be found; a data set that
    does not lie where it was is told in a warning.

    Parameters
    ----------
    what
        A map, the folder of its run, or the config of both.
    dataset
        The data set of the run, if it has moved.

    Raises
    ------
    MissingFileError, ConfigError
        There is no such run, or it has no map yet; the data set given is not there.
    ModelError
        The data set given has other species than the run.
    """
    from butterfly_sdm.mapping.map_file import read_tags
    from butterfly_sdm.mapping.viewer import SitesSeen

    path, run = Path(what), None
    if path.is_dir() or path.suffix in (".yaml", ".yml"):
        run, _ = open_run(path, ())
        path = run.folder.parent / "map.tif"
        if not path.is_file():
            raise MissingFileError(
                f"There is no map {path}. Make it with: butterfly-sdm map {what}. Or name another."
            )
    tags = read_tags(path)
    with suppress(ButterflySDMError):
        run = run or Run.open(path.parent / "run")
    if run is None or run.card.get("key") != tags.get("run"):
        return path, None  # of another run, or by hand
    coarsened = (tags.get("sensitive") or {}).get("coarsened_m", {})
    hidden = {*run.config.sensitive, *coarsened}
    if dataset is not None:
        return path, SitesSeen(dataset_of(run, dataset), hidden)
    if run.card.get("dataset"):  # else it was trained on one that was never written
        try:
            return path, SitesSeen(run.dataset, hidden)
        except ButterflySDMError as error:
            log.warning("The map is shown without the sites of its run. %s", error)
    return path, None


def _covariate_rasters(settings: Config, predictor: Predictor) -> dict[str, CovariateRaster]:
    return covariate_rasters(settings, predictor.sees.covariates)


def covariate_rasters(settings: Config, names: Sequence[str]) -> dict[str, CovariateRaster]:
    """
    Return the raster of each covariate, read as it was for the sites where building says how; of
    ``names`` those that are there.
    """
    from butterfly_sdm.mapping.options import CovariateRaster

    given = settings.map.covariates
    built: dict[str, CovariateRaster] = {}
    for raster in (
        settings.build.covariates.rasters if settings.build and settings.build.covariates else ()
    ):
        for side in raster.side_m:
            begin, end = f"{raster.name}_", f"_{side:g}m"
            read = CovariateRaster(path=raster.path, side_m=side, band=raster.band)
            if raster.kind == "mean":
                built[f"{raster.name}{end}"] = read
                continue
            labels = {label: value for value, label in (raster.classes or {}).items()}
            if raster.classes is None:  # named by their numbers
                middles = [name.removeprefix(begin).removesuffix(end) for name in (*names, *given)]
                labels = {middle: int(middle) for middle in middles if middle.lstrip("-").isdigit()}
            for label, value in labels.items():
                built[f"{begin}{label}{end}"] = read.model_copy(update={"value": value})
    given, embedded = _embedded_columns(settings, given, names)
    found = {name: raster for name, raster in built.items() if raster.path.is_file()} | embedded
    for name, own in given.items():
        if isinstance(own, CovariateRaster):
            found[name] = own
        else:
            found[name] = built.get(name, CovariateRaster(path=own)).model_copy(
                update={"path": own}
            )
    return found


def _embedded_columns(
    settings: Config, given: Mapping[str, Path | CovariateRaster], names: Sequence[str]
) -> tuple[dict[str, Path | CovariateRaster], dict[str, CovariateRaster]]:
    """
    Return what else is given for a map, and those of ``names`` that are columns of embeddings; a
    group of these is read from another place if that is given for it.
    """
    from butterfly_sdm.imagery.embeddings.columns import side_of
    from butterfly_sdm.mapping.options import CovariateRaster

    others, found = dict(given), {}
    for options in settings.build.embedded if settings.build else ():
        other = others.pop(options.group, None)
        if isinstance(other, CovariateRaster):
            raise ConfigError(
                f"map.covariates.{options.group} is a group of embeddings, read as build reads "
                "them. Give their file or folder alone."
            )
        if other is not None:
            options = options.model_copy(update={"path": other})
        first = options.paths[0]
        if isinstance(first, Path) and not first.exists():
            continue
        for name in names:
            side = side_of(options, name)
            if side is not None:
                found[name] = CovariateRaster(path=Path(first), side_m=side, embedding=options)
    return others, found


def square_of_reference(text: str) -> Polygon:
    """
    Return the square (EPSG:4326) that a British or Irish grid reference means.

    Raises
    ------
    RecordsError
        It is none.
    """
    from data_prep.records.places.grid_references import GridSquare

    return GridSquare.parse(text).footprint()


def dataset_for(
    settings: Config, dataset: Dataset | str | Path | None, progress: Progress
) -> Dataset:
    """
    Open the data set that is given, else the one a config speaks of; build that if it is not there
    and the config says how.

    Raises
    ------
    ConfigError
        It was built here from another section ``build`` than the config has now.
    """
    if isinstance(dataset, Dataset):
        return dataset
    named = dataset or settings.train.dataset
    folder = Path(named or out_folder(settings) / "dataset")
    if named is None and settings.build is not None:
        if not folder.exists():
            return build(settings, folder, progress=progress)
        mark = _settings_mark(folder)
        if mark.is_file() and _settings_keys(settings)[0].encode() not in mark.read_bytes().split():
            raise ConfigError(
                f"The data set {folder} was built before the section build of the config was "
                "changed. Build it again: "
                f"butterfly-sdm build CONFIG. Or use it as it is: --dataset {folder}"
            )
    return Dataset.open(folder)


def _settings_mark(folder: Path) -> Path:
    # Beside the folder, not in it: paths of this machine are in the settings.
    return folder.with_name(f".{folder.name}.settings")


def _settings_keys(settings: Config) -> list[str]:
    """
    Return what identifies the section build, and, where the config of a run does not repeat a name,
    what identifies it there.
    """
    assert settings.build is not None
    sections = [settings.build.model_dump(mode="json"), told_settings(settings)["build"]]
    others = [{k: v for k, v in one.items() if k not in ("workers", "dask")} for one in sections]
    return list(dict.fromkeys(map(fingerprint, others)))
