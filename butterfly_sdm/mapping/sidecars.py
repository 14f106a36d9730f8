"""Files beside a map: a STAC item, a QGIS style, a quick-look picture."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from rasterio.enums import Resampling
from rasterio.warp import transform_bounds, transform_geom

from butterfly_sdm import figures
from butterfly_sdm.core.files import discard_unfinished, sha256, write_json, write_text
from butterfly_sdm.figures.palette import DIVERGING, RAMP
from butterfly_sdm.imagery.products import metres_per_unit, open_raster
from butterfly_sdm.mapping.map_file import read_tags
from butterfly_sdm.mapping.quantity import is_of_species

EXTENSIONS = tuple(
    f"https://stac-extensions.github.io/{name}/schema.json"
    for name in ("projection/v2.0.0", "raster/v2.0.0", "file/v2.1.0")
)


def ramp_of(unit: str) -> tuple[str, ...]:
    """Return the colours of a band, from its lowest number to its highest."""
    return DIVERGING if unit == "difference" else RAMP


def known_words(tags: Mapping[str, Any]) -> list[str]:
    """Return what the metadata of a map says of how good it is, one sentence each."""
    return [str(tags[key]["sentence"]) for key in ("skill", "interval") if tags.get(key)]


def skill_words(tags: Mapping[str, Any], name: str) -> str:
    """Return what the metadata of a map says of one species, or nothing."""
    found = ((tags.get("skill") or {}).get("species") or {}).get(name)
    if not found:
        return ""
    skill, low, high = (found[key] for key in ("skill", "low", "high"))
    text = "skill not known" if skill is None else f"skill {skill:.2f}"
    if skill is not None and low is not None and high is not None:
        text += f" ({low:.2f} to {high:.2f})"
    verdict = {
        "better": "",
        "unsure": "; not shown to be better than its mean rate",
        "worse": "; no better than its mean rate",
    }.get(found["verdict"], "; cannot be judged")
    return f"{text}, seen at {found['sites']} of {found['of']} sites{verdict}"


def write_stac(
    path: Path, *, observed: tuple[datetime, datetime] | None = None, title: str = ""
) -> Path:
    """
    Write a STAC item ``MAP.json`` beside a map, with raster and projection properties of every
    band.

    Parameters
    ----------
    observed
        First and last date of the imagery; None: the date of the file.
    """
    import pystac

    tags = read_tags(path)
    skill = (tags.get("skill") or {}).get("species") or {}
    with open_raster(path) as source:
        epsg = source.crs.to_epsg()
        box = transform_bounds(source.crs, "EPSG:4326", *source.bounds)
        left, bottom, right, top = source.bounds
        ring = [[left, bottom], [right, bottom], [right, top], [left, top], [left, bottom]]
        geometry = transform_geom(
            source.crs, "EPSG:4326", {"type": "Polygon", "coordinates": [ring]}
        )
        bands = [
            {"name": name, "unit": unit, "nodata": source.nodata, "data_type": source.dtypes[0]}
            | ({"raster:scale": scale} if scale != 1 else {})
            | ({"butterfly_sdm:skill": skill[name]} if name in skill else {})
            for name, unit, scale in zip(
                source.descriptions, source.units, source.scales, strict=True
            )
        ]
        side_m = abs(source.transform.e) * metres_per_unit(source.crs, str(path))
        shape, grid, wkt = list(source.shape), list(source.transform)[:6], source.crs.to_wkt()
    written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    properties: dict[str, Any] = {
        "title": title or path.stem,
        "created": written.isoformat(),
        "gsd": round(side_m, 6),
        "proj:shape": shape,
        "proj:transform": grid,
        **({"proj:code": f"EPSG:{epsg}"} if epsg else {"proj:wkt2": wkt}),
        "butterfly_sdm:audit": tags.get("audit", {}),
        "butterfly_sdm:mode": tags.get("mode"),
        "butterfly_sdm:model": tags.get("model"),
    }
    if sentences := known_words(tags):
        properties["description"] = " ".join(sentences)
    for name in ("interval", "limits"):
        if tags.get(name):
            properties[f"butterfly_sdm:{name}"] = tags[name]
    first, last = observed or (None, None)
    item = pystac.Item(
        path.stem,
        geometry,
        list(box),
        None if first else written,
        properties,
        start_datetime=first,
        end_datetime=last,
        stac_extensions=list(EXTENSIONS),
    )
    asset = pystac.Asset(
        f"./{path.name}",
        "presence probabilities",
        media_type=pystac.MediaType.COG,
        roles=["data"],
        extra_fields={
            "bands": bands,
            "file:size": path.stat().st_size,
            "file:checksum": "1220" + sha256(path),
        },
    )
    item.add_asset("map", asset)
    write_json(target := path.with_suffix(".json"), item.to_dict(include_self_link=False))
    return target


def write_styles(path: Path, *, tags: Mapping[str, Any] | None = None) -> Path:
    """
    Write one QGIS style per band into the folder ``MAP_styles``, and ``MAP.qml``, which QGIS takes
    for the first band.

    Parameters
    ----------
    tags
        What is known of the raster; None: the metadata of a map, which it has to be.
    """
    with open_raster(path) as source:
        names, units = source.descriptions, source.units
    tags = read_tags(path) if tags is None else tags
    folder = path.with_name(f"{path.stem}_styles")
    folder.mkdir(exist_ok=True)
    discard_unfinished(folder)
    for number, (name, unit) in enumerate(zip(names, units, strict=True), start=1):
        top = (
            1.0
            if is_of_species(unit) or (unit or "").startswith("presence")
            else _largest(path, number)
        )
        own = [f"{words}."] if (words := skill_words(tags, name)) else []
        notes = " ".join([*own, *known_words(tags)])
        style = _style(number, name, top, notes)
        write_text(folder / f"{number:03d} {_file_name(name)}.qml", style)
        if number == 1:
            write_text(path.with_suffix(".qml"), style)
    return folder


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in " -." else "_" for letter in name)[:80]


def _style(band: int, name: str, top: float, notes: str) -> str:
    # No scale: QGIS applies that of a band before the renderer sees the values.
    steps = len(RAMP) - 1
    items = "\n".join(
        f'          <item value="{top * i / steps:.6g}" label="{top * i / steps:.3g}" '
        f'color="{color}" alpha="255"/>'
        for i, color in enumerate(RAMP)
    )
    return f"""<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>
<qgis version="3.34" styleCategories="Symbology|Notes">
  <userNotes value={quoteattr(notes)}/>
  <pipe>
    <rasterrenderer type="singlebandpseudocolor" band="{band}" opacity="1" alphaBand="-1" classificationMin="0" classificationMax="{top:.6g}">
      <minMaxOrigin><limits>None</limits><extent>WholeRaster</extent><statAccuracy>Estimated</statAccuracy></minMaxOrigin>
      <rastershader>
        <colorrampshader colorRampType="INTERPOLATED" classificationMode="1" clip="0" minimumValue="0" maximumValue="{top:.6g}" labelPrecision="2">
{items}
        </colorrampshader>
      </rastershader>
    </rasterrenderer>
  </pipe>
  <customproperties><Option type="Map"><Option type="QString" name="band" value={quoteattr(name)}/></Option></customproperties>
</qgis>
"""  # noqa: E501


def _largest(path: Path, band: int) -> float:
    values = read_reduced(path, (band,), 512)[0]
    return float(np.nanmax(values)) if np.isfinite(values).any() else 1.0


def read_reduced(path: Path, bands: tuple[int, ...] | None, most: int) -> np.ndarray:
    """
    Return (bands, rows, cols) numbers of a map, reduced to at most ``most`` pixels a side; NaN
    where there are none.
    """
    with open_raster(path) as source:
        factor = max(1.0, max(source.shape) / most)
        shape = (max(1, round(source.height / factor)), max(1, round(source.width / factor)))
        indexes = list(bands or source.indexes)
        method = Resampling.average if factor > 1 else Resampling.nearest
        stored = source.read(
            indexes, out_shape=(len(indexes), *shape), masked=True, resampling=method
        )
        scales = np.array([source.scales[number - 1] for number in indexes])
    values: np.ndarray = stored.astype(np.float64).filled(np.nan) * scales[:, None, None]
    return values


def write_quicklook(path: Path, *, most: int = 9) -> Path:
    """
    Write ``MAP.png``: the first ``most`` bands side by side, each with its own legend; says how
    many there are.
    """
    with open_raster(path) as source:
        names, units, bands = source.descriptions[:most], source.units[:most], source.count
        left, bottom, right, top = source.bounds
        unit = "km" if source.crs.is_projected else "degrees"
    step = 1000 if unit == "km" else 1
    tags = read_tags(path)
    picture = figures.show_bands(
        read_reduced(path, tuple(range(1, len(names) + 1)), 600),
        dict(zip(names, units, strict=True)),
        extent=(left / step, right / step, bottom / step, top / step),
        axis_unit=unit,
        notes={name: skill_words(tags, name) for name in names},
    )
    shown = "" if bands == len(names) else f"The first {len(names)} of {bands} bands. "
    picture.suptitle(
        "\n".join([f"{shown}Hatched: nothing predicted.", *known_words(tags)]), fontsize=9
    )
    return picture.save(path.with_suffix(".png"), dpi=110)
