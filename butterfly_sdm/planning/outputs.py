"""Write plans and replays as files that phones, QGIS and spreadsheets open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
from rasterio.transform import from_origin

from butterfly_sdm import figures
from butterfly_sdm.core.cards import checksums, fingerprint, sealed
from butterfly_sdm.core.files import atomic_path, read_json, write_json, write_table, write_text
from butterfly_sdm.core.work import resumable_folder
from butterfly_sdm.errors import ArtefactError
from butterfly_sdm.mapping.sidecars import write_styles
from butterfly_sdm.planning.plan import Plan
from butterfly_sdm.planning.replay import Replay

PLAN_FORMAT, REPLAY_FORMAT = "butterfly_sdm plan", "butterfly_sdm replay"


def write_plan(plan: Plan, folder: Path) -> Plan:
    """
    Write a plan into a folder, whole or not at all.

    ``plan.gpkg`` (ranked sites, and a layer ``gain`` of all candidates), ``plan.gpx`` (waypoints),
    ``plan.csv``, ``plan.geojson``, ``plan.png``, ``plan.md`` (what it is good for), ``plan.json``;
    with candidates on a grid also ``gain.tif`` and its styles for QGIS.

    Returns
    -------
    Plan
        The same, with its folder.

    Raises
    ------
    ArtefactError
        The folder holds something else.
    """
    _may_replace(folder, "plan.json", PLAN_FORMAT)
    key = fingerprint({"sites": list(plan.sites.index), "about": dict(plan.about)})
    with resumable_folder(folder, key) as partial:
        flat = pd.DataFrame(plan.sites.drop(columns="geometry"))
        write_table(partial / "plan.csv", flat, float_format="%.9g", index_label="name")
        named = plan.sites.reset_index()
        _vector(partial / "plan.gpkg", named, layer="plan")
        _vector(partial / "plan.gpkg", plan.layer.reset_index(), layer="gain")
        write_text(partial / "plan.geojson", _geojson(named))
        _vector(partial / "plan.gpx", _waypoints(plan), driver="GPX", layer="waypoints")
        if plan.side_m is not None:
            _write_raster(partial / "gain.tif", plan)
            write_styles(partial / "gain.tif", tags={})
        figures.show_plan(
            plan.layer,
            plan.sites,
            plan.surveyed,
            metres_per_unit=plan.sites.crs.axis_info[0].unit_conversion_factor,
            value="finds" if "finds" in plan.layer else "gain",
        ).save(partial / "plan.png")
        write_text(partial / "plan.md", _page(plan))
        write_json(partial / "plan.json", _with_files(_card(plan), partial))
    return replace(plan, folder=folder)


def _may_replace(folder: Path, name: str, what: str) -> None:
    """Refuse to write over what is no plan."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / name).is_file():
        raise ArtefactError(
            f"{folder} is there already and holds no {what.partition(' ')[2]}. Choose another "
            "--out."
        )


def _vector(path: Path, table: gpd.GeoDataFrame, **options: Any) -> None:
    """Add a layer to a vector file in the making."""
    table.to_file(path, **{"driver": "GPKG"} | options)


def _waypoints(plan: Plan) -> gpd.GeoDataFrame:
    """Return the middles of the sites as phones read them: a name and a few words."""
    sites = plan.sites
    return gpd.GeoDataFrame(
        {
            "name": [
                f"{rank} {name}" for rank, name in zip(sites["rank"], sites.index, strict=True)
            ],
            "desc": [
                f"{visits} visits; {share:.1f} % of the gain of the plan"
                for visits, share in zip(sites["visits"], sites["share"], strict=True)
            ],
        },
        geometry=gpd.points_from_xy(sites["lon"], sites["lat"]),
        crs="EPSG:4326",
    )


def _geojson(named: gpd.GeoDataFrame) -> str:
    """Return the ranked sites in degrees, for pages."""
    table = named.to_crs(4326)
    table["geometry"] = table.geometry.set_precision(1e-6)
    found: str = table.to_json(drop_id=True)
    return found


def _write_raster(path: Path, plan: Plan) -> None:
    """Write the layer of a grid as a GeoTIFF: one pixel per square, NaN where no candidate is."""
    assert plan.side_m is not None
    unit = plan.layer.crs.axis_info[0].unit_conversion_factor
    side = plan.side_m / unit
    squares = plan.layer[plan.layer.geom_type == "Polygon"]
    bounds = squares.geometry.bounds.to_numpy()
    column = np.rint(bounds[:, 0] / side).astype(int)
    row = np.rint(bounds[:, 3] / side).astype(int)
    left, top = column.min(), row.max()
    names = [name for name in ("gain", "gain_left", "finds") if name in squares]
    units = {"finds": "expected finds"}
    values = np.full((len(names), top - row.min() + 1, column.max() - left + 1), np.nan, np.float32)
    for band, name in enumerate(names):
        values[band, top - row, column - left] = squares[name]
    with (
        atomic_path(path) as temporary,
        rasterio.open(
            temporary,
            "w",
            driver="COG",
            count=len(names),
            height=values.shape[1],
            width=values.shape[2],
            dtype="float32",
            nodata=np.nan,
            crs=plan.layer.crs.to_wkt(),
            transform=from_origin(left * side, top * side, side, side),
            compress="deflate",
        ) as raster,
    ):
        raster.write(values)
        raster.descriptions = names
        raster.units = [units.get(name, "% of the expected error") for name in names]


def _page(plan: Plan) -> str:
    notes = "".join(f"\n- {note}" for note in plan.notes)
    return f"# Where to look next\n\n{plan.words}\n{notes}\n"


def _card(plan: Plan) -> dict[str, Any]:
    asked = plan.options.model_dump(
        mode="json",
        # paths are of this machine; what is protected, and where people live, is nobody's business
        include={"sites", "visits", "aim", "method", "grid_m", "revisit", "cost", "budget"},
    )
    about = {key: value for key, value in plan.about.items() if key != "promises"}
    return {
        "format": PLAN_FORMAT,
        "format_version": 1,
        "asked": asked | {"species": list(plan.options.species)},
        "about": about,
        "promise": {key: round(value, 8) for key, value in plan.promise.items()},
        "words": plan.words,
        "notes": list(plan.notes),
    }


def write_replay(replay: Replay, folder: Path) -> Path:
    """
    Write a replay into a folder, whole or not at all: ``replay.csv`` (one row per method),
    ``draws.csv``, ``errors.csv`` (per species), ``replay.png``, ``replay.md``, ``replay.json``.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ArtefactError
        The folder holds something else.
    """
    _may_replace(folder, "replay.json", REPLAY_FORMAT)
    with resumable_folder(folder, fingerprint(dict(replay.about))) as partial:
        write_table(partial / "replay.csv", replay.summary, float_format="%.8g")
        write_table(partial / "draws.csv", replay.draws, float_format="%.8g", index=False)
        errors = pd.concat([replay.draws[["draw", "method"]], replay.errors], axis=1)
        write_table(partial / "errors.csv", errors, float_format="%.8g", index=False)
        figures.show_replay(replay.summary, replay.draws).save(partial / "replay.png")
        write_text(partial / "replay.md", f"# Replay of a survey\n\n{replay.verdict}\n")
        card = {
            "format": REPLAY_FORMAT,
            "format_version": 1,
            "about": dict(replay.about),
            "promises": {key: round(value, 6) for key, value in replay.promises.items()},
            "verdict": replay.verdict,
        }
        write_json(partial / "replay.json", _with_files(card, partial))
    return folder


def _with_files(card: dict[str, Any], partial: Path) -> dict[str, Any]:
    """Return a card that lists all files of the folder that it is the last to be written in."""
    written = [p for p in partial.rglob("*") if p.is_file() and not p.name.startswith(".")]
    return sealed(card | {"files": checksums(written, partial)})


def read_promises(folder: Path) -> dict[str, float]:
    """
    Return how promises held in a replay that was written.

    Raises
    ------
    MissingFileError, ArtefactError
        There is none in the folder, or it is damaged.
    """
    card = read_json(folder / "replay.json")
    try:
        if card["format"] != REPLAY_FORMAT:
            raise KeyError("format")
        return {
            name: float(card["promises"][name]) for name in ("r", "kept", "kept_low", "kept_high")
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(
            f"{folder / 'replay.json'} is no replay, or damaged: make it again with "
            "butterfly-sdm plan RUN --replay."
        ) from error
