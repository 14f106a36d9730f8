"""The imagery a config names: products found or fetched, clouds left out, dates put together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from butterfly_sdm.core.executor import open_executor
from butterfly_sdm.errors import ConfigError, RasterError
from butterfly_sdm.imagery.embeddings.scene import check_bands, open_embedding_scene
from butterfly_sdm.imagery.options import SceneOptions
from butterfly_sdm.imagery.reader import Supply
from butterfly_sdm.imagery.scene import CLOUDY, Scene, open_scene
from butterfly_sdm.progress import Progress, silent
from data_prep.imagery.composites import (
    Composite,
    compose_lazily,
    make_composite,
    select_dates,
)

log = logging.getLogger("data_prep.imagery.scenes")


def scene_of(
    config: SceneOptions,
    *,
    bands: Sequence[str] | None = None,
    scratch: Path,
    opened: Scene | None = None,
    bbox: tuple[float, float, float, float] | None = None,
    check: Callable[[Scene], object] | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> tuple[Scene, Composite | None]:
    """
    Open the scene a config names; its dates are composed where it is read, or into one raster in
    ``scratch`` if that is asked for.

    Of the products of a STAC search only what is read is fetched, into ``scratch``.

    Parameters
    ----------
    config
        Section ``scenes``.
    bands
        Names of the bands wanted, in order; None for all.
    scratch
        Folder for what is fetched, and for a composite that is written.
    opened
        What :func:`open_named` gave for the paths of the config, so that they are not opened twice.
    bbox
        West, south, east and north in degrees of what is needed, for a STAC search that does not
        state it.
    check
        Called with the scene before its dates are composed, which may take hours: raises where the
        scene is of no use.
    executor
        Runs the blocks of a composite; None for two threads.

    Returns
    -------
    scene : Scene
    composite : Composite or None

    Raises
    ------
    ConfigError, MissingFileError, RasterError, SourceError
        Nothing is named, or a product is missing, damaged or does not fit.
    """
    if config.embeddings is not None and config.composite:
        raise ConfigError(
            "scenes.composite does not work with scenes.embeddings, which are of a year already. "
            "Leave it out, and state scenes.embeddings.year."
        )
    if config.stac is not None:
        fetched, supply = _fetch(config, scratch / "stac", bands, bbox, progress)
        scene = open_named(config, [*config.paths, *fetched], bands=bands)
        scene = replace(scene, supply=supply)
    else:
        scene = opened or open_named(config, config.paths, bands=bands)
    if check is not None:
        check(scene)
    if config.composite is None:
        return scene, None
    unseen = [piece.name for piece in scene.pieces if piece.mask is None]
    if unseen and config.composite.method == "least_cloudy":
        raise RasterError(
            f"{len(unseen)} of {len(scene.pieces)} scenes, such as {unseen[0]}, have no scene "
            "classification (SCL), so nobody knows which date is the least cloudy. Add it, or set "
            "scenes.composite.method: median."
        )
    if len(unseen) == len(scene.pieces):
        log.warning(
            "No scene has a scene classification (SCL), so the composite cannot leave out clouds."
        )
    with ExitStack() as stack:
        pool = executor or stack.enter_context(open_executor(2, threads=True))[0]
        options = config.composite
        if not options.mosaic:
            lazy, composite = compose_lazily(scene, options, executor=pool, progress=progress)
            return lazy, replace(composite, files=files_of(lazy))
        out = scratch / "composite.tif"
        composite = make_composite(scene, out, options, executor=pool, progress=progress)
    composed = open_scene(out, dtype=scene.dtype).select(scene.bands)
    if composed.offset != scene.offset:
        raise RasterError(
            f"{out} has the offset {composed.offset:g}, not {scene.offset:g}. Remove it and build "
            "again."
        )
    return composed, replace(composite, files=files_of(scene))


def _fetch(
    config: SceneOptions,
    folder: Path,
    bands: Sequence[str] | None,
    bbox: tuple[float, float, float, float] | None,
    progress: Progress,
) -> tuple[list[Path], Supply]:
    from data_prep.sources.sparse import SparseCopies
    from data_prep.sources.stac import begin_products

    assert config.stac is not None  # the caller has looked
    stac = config.stac.model_copy(update={"bbox": config.stac.bbox or bbox})
    if stac.bbox is None:
        raise ConfigError(
            "scenes.stac.bbox is missing: state west, south, east and north of the area in degrees."
        )
    supply = SparseCopies(sign=stac.sign)
    wanted = tuple(bands or ("red", "green", "blue", "nir"))
    made = begin_products(
        stac, folder, supply, bands=wanted, embeddings=config.embeddings, progress=progress
    )
    return made, supply


def open_named(
    config: SceneOptions, paths: Sequence[str | Path], *, bands: Sequence[str] | None = None
) -> Scene:
    """
    Open paths as the scene that a config means: its bands, clouds, years and months. No pixel is
    read.

    Raises
    ------
    ConfigError, MissingFileError, RasterError
        As :func:`scene_of`.
    """
    if not paths:
        raise ConfigError("The section scenes names no imagery. Give scenes.paths, or scenes.stac.")
    if config.embeddings is not None:
        for name in ("bands", "nodata", "scale", "offset", "dtype", "cloudy"):
            if getattr(config, name) is not None:
                raise ConfigError(
                    f"scenes.{name} is not read beside scenes.embeddings, which says what the "
                    "numbers mean. State it there, or leave it out."
                )
        scene = open_embedding_scene(paths, config.embeddings)
        if bands is None:
            return scene
        check_bands(scene, bands)
        return scene.select(bands)
    if config.composite is not None and config.cloudy is None:
        config = config.model_copy(update={"cloudy": CLOUDY})
    scene = open_scene(paths, config)
    if bands is not None:
        scene = scene.select(bands)
    return scene if config.composite is None else select_dates(scene, config.composite)


def files_of(scene: Scene) -> dict[str, str | None]:
    """
    Return the files a scene reads, of partial copies the addresses of the originals, each with the
    licence its product states, if any.
    """
    found: dict[str, str | None] = {}
    for piece in scene.pieces:
        for product in piece.products:
            for layer in product.files:
                address = scene.supply.address(layer.path) if scene.supply is not None else None
                found[address or layer.path] = product.licence
    return found
