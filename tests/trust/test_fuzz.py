"""
Whatever a file from a stranger holds, it is read or refused with an error of this package, in
bounded time and memory.
"""

import io
import json
import os
import resource
import shutil
import signal
import socket
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

import geopandas
import numpy as np
import polars as pl
import pyogrio
import pytest
import rasterio
import torch
import yaml
from rasterio.transform import from_origin
from rasterio.windows import Window

from butterfly_sdm.baselines.mean_rate import MeanRate
from butterfly_sdm.config import load_config
from butterfly_sdm.core.cards import sealed
from butterfly_sdm.core.settings import load_settings
from butterfly_sdm.data.dataset import Dataset, read_card
from butterfly_sdm.data.splits import Split
from butterfly_sdm.errors import ButterflySDMError
from butterfly_sdm.imagery.scene import open_scene
from butterfly_sdm.mapping.map_reader import MapReader
from butterfly_sdm.models.fit import _read_checkpoint
from butterfly_sdm.plugins import runner
from butterfly_sdm.plugins.contract import PluginRun
from butterfly_sdm.plugins.plugin import check_run, get_plugin
from butterfly_sdm.plugins.stages import Limits, _Training, train_stages
from butterfly_sdm.predictors import load_predictor
from butterfly_sdm.progress import silent
from butterfly_sdm.run import Run
from data_prep.imagery.ledger import Ledger
from data_prep.records.dates import read_days
from data_prep.records.files.markup import parse_xml
from data_prep.records.names import read_name, read_synonyms
from data_prep.records.occurrences import GROUPS
from data_prep.records.options import RecordsOptions
from data_prep.records.places.grid_references import GridSquare
from data_prep.records.places.sites import read_sites, resolve_places
from data_prep.records.readers.archive import ArchiveReader
from data_prep.records.readers.registry import open_records
from tests.plugins.conftest import settings_of
from tests.trust import mutation

INPUTS = int(os.environ.get("BUTTERFLY_SDM_FUZZ", "1000000"))
#: Of all inputs: readers that take microseconds get most, those that take up to 30 ms hundreds.
SHARES = {
    "grid reference": 0.6578,
    "name": 0.15,
    "XML": 0.08,
    "journal of tiles": 0.02,
    "checkpoint": 0.015,
    "dataset.json": 0.01,
    "run.json": 0.01,
    "split.json": 0.01,
    "plugin checkpoint": 0.01,
    "meta.xml": 0.005,
    "synonyms": 0.004,
    "config (YAML)": 0.004,
    "STAC item": 0.003,
    "VRT": 0.003,
    "GeoTIFF": 0.002,
    "map": 0.002,
    "table of sites": 0.002,
    "plugin weights": 0.002,
    "plugin run": 0.002,
    "model.json (mean rate)": 0.001,
    "date": 0.0008,
    "model.safetensors": 0.0008,
    "archive": 0.0007,
    "CSV": 0.0007,
    "Parquet": 0.0006,
    "workbook (xlsx)": 0.001,
    "GeoPackage": 0.001,
    "model.json (network)": 0.0005,
    "WKT": 0.0004,
    "model folder": 0.0004,
    "config (fields)": 0.0003,
}
SECONDS = 20  # of processor time that one input may take
MEGABYTES = 512  # of memory by which one input may raise the highest use so far


class TooSlow(Exception):
    """An input took longer than it may."""


@contextmanager
def watchdog() -> Iterator[Callable[[], None]]:
    """
    Yield a function to be called before each input: it starts the clock anew (processor time) and
    checks the memory.
    """
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = (
        int(Path("/proc/self/statm").read_text().split()[0])
        if Path("/proc/self/statm").is_file()
        else None
    )

    def bark(*_: object) -> None:
        raise TooSlow(f"one input took more than {SECONDS} s")

    def start() -> None:
        nonlocal highest
        now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if now - highest > MEGABYTES * 1024:
            raise MemoryError(f"the input before took {(now - highest) // 1024} MB")
        highest = now
        signal.setitimer(signal.ITIMER_PROF, SECONDS)

    before = signal.signal(signal.SIGPROF, bark)
    if (
        pages is not None
    ):  # so that an input that asks for much more meets an error, not the machine its end
        resource.setrlimit(
            resource.RLIMIT_AS, (pages * resource.getpagesize() + 8 * MEGABYTES * 2**20, limits[1])
        )
    try:
        yield start
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@dataclass(frozen=True)
class Target:
    """
    A reader of outside data.

    Attributes
    ----------
    name
        Of what it reads.
    valid
        An input that it reads without an error.
    change
        Makes another input of it.
    read
        Reads an input.
    """

    name: str
    valid: bytes
    change: mutation.Mutator
    read: Callable[[bytes], object]


def _from_file(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    path.parent.mkdir(parents=True, exist_ok=True)

    def read_bytes(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return read_bytes


def _read_rows(path: Path) -> None:
    for _ in open_records(path).blocks():
        pass


def _read_pixels(path: Path) -> None:
    scene = open_scene(path)
    scene.read(Window(0, 0, min(scene.width, 64), min(scene.height, 64)))


def _texts(data: bytes) -> list[str]:
    return data.decode("utf-8", errors="replace").split("\x1e")


def _read_places(data: bytes) -> None:
    parts = (_texts(data) + [""] * 3)[:3]
    rows = {term: [""] for term in GROUPS["place"]}
    rows |= {
        "footprintWKT": [parts[0]],
        "footprintSRS": [parts[1][:40]],
        "gridReference": [parts[2]],
    }
    rows |= {"decimalLatitude": ["51.5"], "decimalLongitude": [parts[2]]}
    frame = pl.DataFrame(rows).with_columns(pl.lit(1, dtype=pl.UInt64).alias("code"))
    grid_m: Literal[1000] | None = 1000 if len(data) % 2 else None
    rules = RecordsOptions(path=Path("records"), out_of_range="drop", grid_m=grid_m)
    resolve_places(frame, rules)


def _read_dates(data: bytes) -> None:
    cells = (_texts(data) + [""] * len(GROUPS["date"]))[: len(GROUPS["date"])]
    rows = {term: [cell] for term, cell in zip(GROUPS["date"], cells, strict=True)}
    read_days(pl.DataFrame(rows).with_columns(pl.lit(1, dtype=pl.UInt64).alias("code")))


def _read_meta(data: bytes, rows: bytes, folder: Path) -> None:
    """Read the description of an unpacked archive, as far as the tables it names."""
    (folder / "meta.xml").write_bytes(data)
    ArchiveReader().open(folder, {})


def _square(data: bytes) -> None:
    square = GridSquare.parse(data.decode("utf-8", errors="replace"))
    assert GridSquare.parse(square.reference) == square


def _zip(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data)
    return out.getvalue()


def _scene(path: Path, bands: tuple[str, ...] = ("red", "nir")) -> bytes:
    profile = {
        "driver": "GTiff",
        "width": 20,
        "height": 16,
        "count": len(bands),
        "dtype": "uint16",
        "nodata": 0,
        "crs": "EPSG:32630",
    }
    with rasterio.open(
        path, "w", transform=from_origin(5e5, 5.7e6, 10, 10), compress="deflate", **profile
    ) as raster:
        raster.write(np.arange(320 * len(bands), dtype=np.uint16).reshape(-1, 16, 20))
        raster.descriptions = bands
    return path.read_bytes()


def _raster_targets(finished, folder: Path) -> list[Target]:
    """Return the readers of scenes and maps."""
    place = folder / "scenes"
    place.mkdir()
    _scene(place / "a.tif")
    for name in ("red", "nir"):
        _scene(place / f"{name}.tif", (name,))
    simple = (
        '<VRTRasterBand dataType="UInt16" band="{band}"><Description>{name}</Description>'
        '<SimpleSource><SourceFilename relativeToVRT="1">a.tif</SourceFilename>'
        '<SourceBand>{band}</SourceBand><SrcRect xOff="0" yOff="0" xSize="20" ySize="16"/>'
        '<DstRect xOff="0" yOff="0" xSize="20" ySize="16"/></SimpleSource></VRTRasterBand>'
    )
    bands = "".join(simple.format(band=n, name=b) for n, b in ((1, "red"), (2, "nir")))
    vrt = (
        '<VRTDataset rasterXSize="20" rasterYSize="16"><SRS>EPSG:32630</SRS>'
        f"<GeoTransform>500000,10,0,5700000,0,-10</GeoTransform>{bands}</VRTDataset>"
    )
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": "a",
        "bbox": [-3, 51.4, -2.9, 51.5],
        "geometry": None,
        "properties": {"datetime": "2020-06-01T10:00:00Z", "proj:epsg": 32630},
        "assets": {
            name: {
                "href": f"./{name}.tif",
                "type": "image/tiff; application=geotiff",
                "roles": ["data"],
                "eo:bands": [{"common_name": name}],
                "raster:bands": [{"scale": 0.0001, "offset": 0, "nodata": 0}],
            }
            for name in ("red", "nir")
        },
        "links": [],
    }
    finished_map = (finished.work / "map.tif").read_bytes()
    return [
        Target(
            "VRT", vrt.encode(), mutation.xml_document, _from_file(place / "a.vrt", _read_pixels)
        ),
        Target(
            "STAC item",
            json.dumps(item).encode(),
            mutation.json_document,
            _from_file(place / "item.json", _read_pixels),
        ),
        Target("map", finished_map, mutation.tiff, _from_file(folder / "map.tif", _read_map)),
    ]


def _read_map(path: Path) -> None:
    source = MapReader(path)
    if source.shape[0] * source.shape[1] <= 2**24:  # what follows takes time by the size
        next(source.blocks(), None)


def _table_targets(folder: Path, rows: pl.DataFrame) -> list[Target]:
    """Return the readers of files that hold tables of records in other ways than as text."""
    book = folder / "records.xlsx"
    pyogrio.write_dataframe(rows.to_pandas(), book, driver="XLSX", layer="records")
    places = geopandas.GeoDataFrame(
        rows.to_pandas(),
        geometry=geopandas.points_from_xy([-1.0] * len(rows), [51.0] * len(rows)),
        crs=4326,
    )
    places.to_file(folder / "records.gpkg", driver="GPKG")
    of = dict.fromkeys(("xl/workbook.xml", "xl/worksheets/sheet1.xml"), mutation.xml_document)
    return [
        Target(
            "workbook (xlsx)",
            book.read_bytes(),
            mutation.archive(of),
            _from_file(folder / "mutated.xlsx", _read_rows),
        ),
        Target(
            "GeoPackage",
            (folder / "records.gpkg").read_bytes(),
            mutation.flip,
            _from_file(folder / "mutated.gpkg", _read_rows),
        ),
    ]


def _model_targets(finished, folder: Path) -> list[Target]:
    """Return the readers of model folders and runs of plugins, finished or not."""
    run = shutil.copytree(finished.work / "run", folder / "model")
    whole = {p.name: p.read_bytes() for p in run.iterdir() if p.suffix in (".json", ".yaml")}

    def read_folder(data: bytes) -> None:
        name, _, content = data.partition(b"\n")
        for known, kept in whole.items():
            (run / known).write_bytes(content if known == name.decode() else kept)
        _ = (opened := Run.open(run)).config, opened.split, opened.predictor

    def change_folder(data: bytes, rng: Random) -> bytes:
        name = rng.choice(sorted(whole))
        change = mutation.json_document if name.endswith("json") else mutation.flip
        return name.encode() + b"\n" + change(whole[name], rng)

    plugin = get_plugin("dfcon")
    small = settings_of("dfcon", folder / "faces") | {"epochs": 1, "head_epochs": 1}
    config, _ = load_settings(plugin.config, small)
    trained = folder / "plugin"
    runner.train(plugin, "dfcon", config, trained)
    checkpoint = folder / "c.safetensors"
    module = plugin.network(config, PluginRun.open(plugin, "dfcon", trained).facts, "a")
    data = plugin.load(config)
    limits = Limits(epochs=1, steps=1)
    stages = plugin.stages(config, data, module, "a")
    train_stages(module, stages, config, part="a", checkpoint=checkpoint, limits=limits)
    training = _Training(module, config, "a", None, silent, limits)
    open_run = _from_file(trained / "model.json", lambda p: _read_plugin_run(plugin, p.parent))
    return [
        Target("model folder", b"\n", change_folder, read_folder),
        Target("plugin run", (trained / "model.json").read_bytes(), _sealed_again, open_run),
        Target(
            "plugin weights",
            (trained / "a.safetensors").read_bytes(),
            mutation.safetensors,
            _from_file(
                trained / "a.safetensors",
                lambda p: PluginRun.open(plugin, "dfcon", p.parent).model("a"),
            ),
        ),
        Target(
            "plugin checkpoint",
            checkpoint.read_bytes(),
            mutation.safetensors,
            _from_file(checkpoint, training.read),
        ),
    ]


def _unfinished_targets(folder: Path) -> list[Target]:
    """Return the readers of what a training and a cutting of tiles left."""
    array = np.lib.format.open_memmap(folder / "tiles.npy", "w+", np.uint16, (6, 2, 4, 4))
    ledger = Ledger(folder / "done", array)
    for unit in range(6):
        ledger.add(f"0/{unit}", [str(unit)])
    ledger.doubt(["3"])
    ledger.save()
    last = folder / "last.ckpt"
    torch.save({"callbacks": {"Journal": {"rows": []}}, "w": torch.rand(20)}, last)
    return [
        Target("checkpoint", last.read_bytes(), mutation.flip, _from_file(last, _read_checkpoint)),
        Target(
            "journal of tiles",
            (folder / "done").read_bytes(),
            mutation.flip,
            _from_file(folder / "done", lambda p: Ledger(p, array).unlike()),
        ),
    ]


def _sealed_again(data: bytes, rng: Random) -> bytes:
    """Change a card, and half of the time its seal with it, as a stranger would."""
    changed = mutation.json_document(data, rng)
    try:
        value = json.loads(changed)
        sealable = rng.random() < 0.5 and isinstance(value, dict)
        return json.dumps(sealed(value)).encode() if sealable else changed
    except (ValueError, RecursionError):
        return changed


def _read_plugin_run(plugin, folder: Path) -> None:
    check_run(folder)
    PluginRun.open(plugin, "dfcon", folder).model("a")


def targets(finished, folder: Path) -> list[Target]:
    """Return every reader of outside data with a small valid input."""
    with zipfile.ZipFile(finished.config.parent / "records.zip") as archive:
        rows = b"\n".join(archive.read("occurrence.txt").split(b"\n")[:6]) + b"\n"
        meta = archive.read("meta.xml")
    frame = pl.read_csv(io.BytesIO(rows), separator="\t", infer_schema=False, quote_char=None)
    parquet = io.BytesIO()
    frame.write_parquet(parquet)
    comma = frame.write_csv().encode()
    config = yaml.safe_load(finished.config.read_text())
    small = yaml.safe_dump(
        {
            "name": "x",
            "build": {"records": config["build"]["records"]},
            "train": {"fit": {"epochs": 3}},
        }
    )
    dataset, run = finished.work / "dataset", finished.work / "run"
    mean = folder / "mean"
    data = Dataset.open(dataset)
    MeanRate().fit(data, data.site_ids).save(mean)
    network = shutil.copytree(run, folder / "network")
    copied = shutil.copytree(dataset, folder / "dataset")
    unpacked = folder / "unpacked"
    unpacked.mkdir()
    (unpacked / "occurrence.txt").write_bytes(rows)
    numbers = (
        "0",
        "1",
        "-",
        ".",
        "5",
        "49",
        "51.5",
        "-0.1",
        "181",
        "1e5",
        "nan",
        "inf",
        "1e999",
        "9" * 30,
        " ",
        ",",
        "(",
        ")",
    )
    wkt = (
        *numbers,
        "POLYGON",
        "MULTIPOLYGON",
        "POINT",
        "GEOMETRYCOLLECTION",
        "EMPTY",
        " Z ",
        " M ",
        "((",
        "))",
        "SRID=4326;",
    )
    letters = (
        *"ABCDEFGHJKLMNOPQRSTUVWXYZI",
        *"0123456789",
        "SU",
        "NE",
        "SW",
        " ",
        "-",
        ".",
        "é",
        "١",
        "\u3000",
    )
    dates = (
        *"0123456789",
        "-",
        "/",
        "T",
        ":",
        "Z",
        "2018",
        "06",
        "31",
        " ",
        "\x1e",
        "9999",
        "0000",
        "+01:00",
    )
    by_member = {"meta.xml": mutation.xml_document, "occurrence.txt": mutation.table("\t")}
    polygon = b"POLYGON((-1 51,-1 51.01,-0.99 51.01,-0.99 51,-1 51))\x1eEPSG:4326\x1eSU87"

    def document(name: str, path: Path, read: Callable[[Path], object]) -> Target:
        return Target(name, path.read_bytes(), mutation.json_document, _from_file(path, read))

    return [
        *_raster_targets(finished, folder),
        *_table_targets(folder, frame),
        *_model_targets(finished, folder),
        *_unfinished_targets(folder),
        Target("grid reference", b"SU8741", mutation.text_of(letters), _square),
        Target("XML", meta, mutation.xml_document, lambda d: parse_xml(d, "meta.xml")),
        Target("meta.xml", meta, mutation.xml_document, lambda d: _read_meta(d, rows, unpacked)),
        Target("WKT", polygon, mutation.text_of(wkt), _read_places),
        Target("date", b"2018-06-03\x1e2018\x1e6\x1e3", mutation.text_of(dates), _read_dates),
        Target(
            "name",
            b"Pieris napi (Linnaeus, 1758)",
            mutation.flip,
            lambda d: read_name(d.decode("utf-8", "replace")),
        ),
        document("split.json", copied / "split.json", lambda p: Split.from_json(p)),
        document("dataset.json", copied / "dataset.json", lambda p: read_card(p.parent)),
        document("run.json", network / "run.json", lambda p: Run.open(p.parent)),
        document("model.json (mean rate)", mean / "model.json", lambda p: load_predictor(p.parent)),
        document(
            "model.json (network)", network / "model.json", lambda p: load_predictor(p.parent)
        ),
        Target(
            "model.safetensors",
            (mean / "model.safetensors").read_bytes(),
            mutation.safetensors,
            _from_file(
                folder / "weights" / "model.safetensors", lambda p: load_predictor(p.parent)
            ),
        ),
        Target(
            "config (YAML)",
            small.encode(),
            mutation.flip,
            _from_file(folder / "flip.yaml", load_config),
        ),
        Target(
            "config (fields)",
            _as_json(small),
            mutation.json_document,
            _from_file(folder / "fields.yaml", load_config),
        ),
        Target("CSV", comma, mutation.table(","), _from_file(folder / "records.csv", _read_rows)),
        Target(
            "archive",
            _zip({"meta.xml": meta, "occurrence.txt": rows}),
            mutation.archive(by_member),
            _from_file(folder / "archive.zip", _read_rows),
        ),
        Target(
            "Parquet",
            parquet.getvalue(),
            mutation.flip,
            _from_file(folder / "records.parquet", _read_rows),
        ),
        Target(
            "table of sites",
            b"site_id,grid_reference\na,SU87\nb,SU88\n",
            mutation.table(","),
            _from_file(folder / "sites.csv", read_sites),
        ),
        Target(
            "synonyms",
            b"recorded,accepted\nAa bb,Cc dd\nEe ff,Gg hh\n",
            mutation.table(","),
            _from_file(folder / "synonyms.csv", lambda p: read_synonyms(p)),
        ),
        Target(
            "GeoTIFF",
            _scene(folder / "valid.tif"),
            mutation.tiff,
            _from_file(folder / "scene.tif", _read_pixels),
        ),
    ]


def _as_json(text: str) -> bytes:
    return json.dumps(yaml.safe_load(text)).encode()


@pytest.fixture(scope="module")
def readers(finished, tmp_path_factory) -> dict[str, Target]:
    """Return all targets by their names."""
    folder = tmp_path_factory.mktemp("readers")
    found = {target.name: target for target in targets(finished, folder)}
    (folder / "weights").mkdir(exist_ok=True)
    shutil.copy(folder / "mean" / "model.json", folder / "weights" / "model.json")
    assert found.keys() == SHARES.keys()
    return found


def _fuzz(target: Target, inputs: int, figures) -> None:
    target.read(target.valid)
    rng = Random(target.name)
    with watchdog() as start, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(max(20, int(inputs * SHARES[target.name]))):
            data = target.change(target.valid, rng)
            try:
                start()
                figures.tried("mutated inputs of readers", target.name)
                target.read(data)
            except ButterflySDMError as error:
                assert str(error)
            except Exception as error:
                raise AssertionError(
                    f"{target.name}: {type(error).__name__}: {error}\n{data[:3000]!r}"
                ) from error
    target.read(target.valid)  # later readers need what lies there whole


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Let no input reach for another machine."""

    def connect(self, address):
        raise AssertionError(f"an input asked for {address}")

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.mark.parametrize("name", list(SHARES))
def test_mutated_inputs_are_read_or_refused(readers, name, figures):
    _fuzz(readers[name], 1000, figures)


@pytest.mark.slow
@pytest.mark.timeout(2 * 3600)
@pytest.mark.parametrize("name", list(SHARES))
def test_a_million_mutated_inputs_are_read_or_refused(readers, name, figures):
    _fuzz(readers[name], INPUTS, figures)
