"""
The four verbs: config in, artefact out.

The command line, a notebook and a test call these same functions. Each takes a config (a YAML file,
a mapping or a :class:`~butterfly_sdm.config.Config`) or the artefact of an earlier stage, and
returns an object that knows where its artefact lies. Work that was interrupted continues; work that
is done is not done again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from butterfly_sdm.config import Config, dump_config, load_config
from butterfly_sdm.core.cards import check_version, damage, fingerprint, sealed
from butterfly_sdm.core.files import read_json, sha256, write_json, write_text
from butterfly_sdm.core.html import facts_html
from butterfly_sdm.core.work import exclusive, resumable_folder, tidy
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import UNKNOWN_CRS, FitContext, Predictor
from butterfly_sdm.data.splits import Split
from butterfly_sdm.errors import (
    ArtefactError,
    ButterflySDMError,
    ConfigError,
    DataError,
    MissingFileError,
    ModelError,
)
from butterfly_sdm.imagery.options import SceneOptions
from butterfly_sdm.predictors import load_predictor, make_predictor
from butterfly_sdm.progress import Progress, silent

if TYPE_CHECKING:
    from butterfly_sdm.evaluation import Scores
    from butterfly_sdm.imagery.scene import Scene
    from butterfly_sdm.mapping import MapResult
    from butterfly_sdm.mapping.layers import Layer
    from butterfly_sdm.mapping.options import CovariateRaster

ConfigLike = str | Path | Mapping[str, Any] | Config
RUN_VERSION = 1


@dataclass(frozen=True)
class Run:
    """
    A trained model in its folder.

    Attributes
    ----------
    folder
        Holds ``config.yaml``, ``split.json``, ``model.json`` and its arrays, ``history.csv``; after
        evaluation also the scores.
    card
        Content of ``run.json``: where the data set was, its fingerprint, the versions used.
    """

    folder: Path
    card: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """
        Open a run folder.

        Raises
        ------
        MissingFileError
            There is no run there.
        ArtefactError
            It is damaged or of another version.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise MissingFileError(
                f"There is no run at {folder}. Make one with: butterfly-sdm train CONFIG"
            )
        card = read_json(folder / "run.json")
        if not isinstance(card, dict) or card.get("format") != "butterfly_sdm run":
            raise ArtefactError(f"{folder} is not a run: its run.json does not say so.")
        check_version(
            card.get("format_version"),
            RUN_VERSION,
            f"The run {folder}",
            f"butterfly-sdm train CONFIG --out {folder}",
        )
        return cls(folder, card)

    @cached_property
    def config(self) -> Config:
        """The config the run was trained with."""
        return load_config(self.folder / "config.yaml")

    @cached_property
    def split(self) -> Split:
        """The split the run was trained with."""
        return Split.from_json(self.folder / "split.json")

    @cached_property
    def predictor(self) -> Predictor:
        """The fitted model."""
        return load_predictor(self.folder)

    @cached_property
    def dataset(self) -> Dataset:
        """The data set the run was trained on, if it still lies where it was."""
        return Dataset.open((self.folder.resolve() / self.card["dataset"]).resolve())

    @property
    def epochs(self) -> str:
        """
        How long a network was trained, in words, and which epoch was the best on the validation
        part; else nothing.
        """
        history, fit = self.folder / "history.csv", self.config.train.fit
        if not history.is_file():
            return ""
        table = pd.read_csv(history)
        text = f"{len(table)} of at most {fit.epochs}"
        scores = table.get(f"validation_{fit.score}")
        if scores is None or scores.isna().all():
            return text
        best = int(scores.idxmin()) + 1
        more = "; with more it may get better: train.fit.epochs" if best == fit.epochs else ""
        return f"{text}, number {best} was the best on the validation sites{more}"

    def _repr_html_(self) -> str:
        model, fit = self.config.train.model, self.config.train.fit
        facts: dict[str, object] = {"model": model.kind, "species": len(self.predictor.species)}
        if model.kind == "network":
            inputs = [name for name in ("image", "covariates", "position") if getattr(model, name)]
            facts["model"] = f"{model.backbone} on {', '.join(inputs)}"
            facts["window"] = f"{model.window_px} px and a margin of {model.margin_px} px"
            facts["loss"] = f"{fit.loss}, regulariser {fit.regulariser.weight:g}"
            facts["epochs"] = self.epochs
        facts["trained on"] = f"{len(self.split.train):,} sites"
        facts["folder"] = self.folder
        return facts_html(f"Run {self.card.get('name', '')}", facts)


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
    write_text(_settings_mark(folder), _settings_key(settings))
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
        The finished run. One that is there already, made with the same settings and data, is
        returned as it is.

    Raises
    ------
    ConfigError, DataError, ModelError, MissingFileError
        A setting is wrong, or the data set does not serve this model.
    """
    settings = load_config(config, overrides)
    folder = Path(out) if out is not None else out_folder(settings) / "run"
    data = dataset if isinstance(dataset, Dataset) else dataset_for(settings, dataset, progress)
    if data.split is None:
        raise DataError(
            f"The data set {data.card.name!r} has no split. Add build.split and build it again."
        )
    model, fit = settings.train.model, settings.train.fit
    key = fingerprint(
        {
            "model": model.model_dump(),
            "fit": fit.model_dump(),
            "seed": settings.seed,
            "dataset": data.fingerprint,
        }
        | {"split": [data.split.train, data.split.validation, data.split.test]}
    )
    if (folder / "run.json").is_file() and Run.open(folder).card.get("key") == key:
        tidy(folder)
        return Run.open(folder)
    predictor = make_predictor(settings.train.model, settings.train.fit, settings.seed)
    with resumable_folder(folder, key) as partial:
        write_text(partial / "config.yaml", dump_config(settings))
        data.split.to_json(partial / "split.json")
        context = FitContext(data.split.validation, partial, progress)
        predictor.fit(data, data.split.train, context=context)
        predictor.save(partial)
        for checkpoints in list(
            partial.rglob("checkpoints")
        ):  # they serve to resume, and are several times the model
            shutil.rmtree(checkpoints)
        card = {
            "format": "butterfly_sdm run",
            "format_version": RUN_VERSION,
            "key": key,
            "name": settings.name,
            # Relative, so that run and data set can move together.
            "dataset": os.path.relpath(data.folder.resolve(), folder.resolve())
            if data.folder
            else None,
            "dataset_fingerprint": data.fingerprint,
            "software": {
                name: version(name) for name in ("butterfly-sdm", "torch", "numpy", "scikit-learn")
            },
            "files": {
                path.relative_to(partial).as_posix(): sha256(path)
                for path in sorted(partial.rglob("*"))
                # An attempt that was interrupted at its very end leaves its card.
                if path.is_file() and not path.name.startswith(".") and path != partial / "run.json"
            },
        }
        write_json(partial / "run.json", sealed(card))
    return Run.open(folder)


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
    check_species(opened.predictor, data)
    folder = Path(out) if out is not None else opened.folder
    with exclusive(folder):
        return evaluate_run(
            opened.predictor,
            data,
            opened.split,
            part=settings.evaluate.part,
            baselines=settings.evaluate.baselines,
            folder=folder,
            seed=settings.seed,
            progress=progress,
        )


def predict_map(
    run: Run | ConfigLike,
    scenes: Sequence[str | Path] | None = None,
    out: str | Path | None = None,
    *,
    bands: Sequence[str] | None = None,
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

    Returns
    -------
    MapResult
        Where the map lies and what it holds.

    Raises
    ------
    ConfigError, MissingFileError, RasterError, DataError, ModelError
        No scene is named, a scene or a raster of a covariate is missing or does not fit, or the run
        cannot be mapped so.
    """
    from butterfly_sdm.mapping.map import write_map
    from butterfly_sdm.mapping.plan import plan_map
    from data_prep.imagery.scenes import scene_of

    opened, settings = open_run(run, overrides)
    wanted = settings.map.scenes or (settings.build.scenes if settings.build else None)
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
    layers: list[Layer] = []
    if "applicability" in options.layers or options.only_applicable:
        layers.append(_applicability(opened, only=options.only_applicable))

    def check_scene(scene: Scene) -> None:
        plan_map(predictor, scene, options, layers=layers)

    scene, _ = scene_of(
        wanted,
        scratch=target.parent / f".{target.stem}.scenes",
        # what is not composed is planned at once
        check=check_scene if wanted.composite else None,
        progress=progress,
    )
    return write_map(
        predictor, scene, target, options, layers=layers, seed=settings.seed, progress=progress
    )


def _position_crs(run: Run) -> str | None:
    """
    Return the CRS of the data set, if it lies where it was: in it covariates were read, and it is
    that of positions in a model of version 0.1.0.
    """
    sees = run.predictor.sees
    if sees.covariates or sees.position_crs == UNKNOWN_CRS:
        with suppress(ButterflySDMError):
            return run.dataset.card.position_crs
    return None


def _covariate_rasters(settings: Config, predictor: Predictor) -> dict[str, CovariateRaster]:
    """Return the raster of each covariate, read as it was for the sites where building says how."""
    from butterfly_sdm.mapping.options import CovariateRaster

    names, given = predictor.sees.covariates, settings.map.covariates
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
    found = {name: raster for name, raster in built.items() if raster.path.is_file()}
    for name, own in given.items():
        if isinstance(own, CovariateRaster):
            found[name] = own
        else:
            found[name] = built.get(name, CovariateRaster(path=own)).model_copy(
                update={"path": own}
            )
    return found


def _applicability(run: Run, *, only: bool) -> Layer:
    """
    Return the layer that says how unlike the training sites a place is, in what the model sees of
    it.
    """
    from butterfly_sdm.evaluation.applicability import Applicability
    from butterfly_sdm.evaluation.evaluate import scorable_sites
    from butterfly_sdm.mapping.layers import Derived, seen_numbers

    data = run.dataset
    sites = scorable_sites(data, run.split.train, [run.predictor])
    of, numbers = seen_numbers(run.predictor, data, sites)
    known = Applicability.fit(numbers, fold_of=data.sites.get("block"))
    return Derived(
        "dissimilarity",
        known.dissimilarity_of,
        of=of,
        unit="mean distances between training sites",
        limit=known.threshold,
        masks=only,
    )


def check(artefact: str | Path) -> list[str]:
    """
    Verify an artefact byte by byte against what was written.

    Parameters
    ----------
    artefact
        Folder of a data set or a run, or a map.

    Returns
    -------
    list of str
        One sentence per problem; empty if all is well.

    Raises
    ------
    MissingFileError, ArtefactError
        There is no artefact there.
    """
    path = Path(artefact)
    if not path.exists():
        raise MissingFileError(
            f"{path} does not exist. Name a data set folder, a run folder or a map."
        )
    if (path / "dataset.json").is_file():
        from data_prep.checking import check_dataset

        return check_dataset(path)
    if (path / "run.json").is_file():
        problems = damage(path / "run.json")
        return problems or _trouble(lambda: Run.open(path).predictor)
    if path.is_file():
        from butterfly_sdm.mapping.map_file import check_map

        return check_map(path)
    raise ArtefactError(
        f"{path} holds neither dataset.json nor run.json: it is no artefact of this package, or "
        "not finished."
    )


def _trouble(action: Callable[[], Any]) -> list[str]:
    try:
        action()
    except ButterflySDMError as error:
        return [str(error)]
    return []


def out_folder(settings: Config) -> Path:
    """Return the folder of the artefacts of an experiment."""
    return settings.out if settings.out is not None else Path("runs", settings.name)


def open_run(run: Run | ConfigLike, overrides: Iterable[str]) -> tuple[Run, Config]:
    """
    Open a run given itself, its folder or its config; the config given now decides about evaluate
    and map.
    """
    if isinstance(run, Run):
        return run, load_config(run.config, overrides)
    if isinstance(run, str | Path) and Path(run).is_dir():
        opened = Run.open(run)
        return opened, load_config(opened.config, overrides)
    settings = load_config(run, overrides)
    return Run.open(out_folder(settings) / "run"), settings


def dataset_for(settings: Config, dataset: str | Path | None, progress: Progress) -> Dataset:
    """
    Open the data set a config speaks of; build it if it is not there and the config says how.

    Raises
    ------
    ConfigError
        It was built here from another section ``build`` than the config has now.
    """
    named = dataset or settings.train.dataset
    folder = Path(named or out_folder(settings) / "dataset")
    if named is None and settings.build is not None:
        if not folder.exists():
            return build(settings, folder, progress=progress)
        mark = _settings_mark(folder)
        if mark.is_file() and mark.read_text(encoding="utf-8") != _settings_key(settings):
            raise ConfigError(
                f"The data set {folder} was built before the section build of the config was "
                "changed. Build it again: "
                f"butterfly-sdm build CONFIG. Or use it as it is: --dataset {folder}"
            )
    return Dataset.open(folder)


def _settings_mark(folder: Path) -> Path:
    # Beside the folder, not in it: paths of this machine are in the settings.
    return folder.with_name(f".{folder.name}.settings")


def _settings_key(settings: Config) -> str:
    assert settings.build is not None
    return fingerprint(settings.build.model_dump(mode="json", exclude={"workers", "dask"}))


def dataset_of(run: Run, dataset: Dataset | str | Path | None) -> Dataset:
    """
    Open the data set a run was trained on, or the one given instead.

    Raises
    ------
    DataError
        The run does not say where its data set lies.
    """
    if isinstance(dataset, Dataset):
        return dataset
    if dataset is not None:
        return Dataset.open(dataset)
    if not run.card.get("dataset"):
        raise DataError(
            f"The run {run.folder} does not say where its data set lies. Name it: --dataset DIR"
        )
    return run.dataset


def check_species(predictor: Predictor, dataset: Dataset) -> None:
    """
    Refuse a data set with other species than the predictor knows.

    Raises
    ------
    ModelError
        The species differ.
    """
    if tuple(predictor.species) != dataset.species:
        missing = [name for name in predictor.species if name not in dataset.species]
        added = [name for name in dataset.species if name not in predictor.species]
        what = (
            f"{missing[0]} is missing there"
            if missing
            else f"{added[0]} is new there"
            if added
            else "their order differs"
        )
        raise ModelError(
            f"The run knows {len(predictor.species)} species, the data set {dataset.card.name!r} "
            f"has {len(dataset.species)}: "
            f"{what}. Evaluate it on the data set it was trained on, or train again."
        )
