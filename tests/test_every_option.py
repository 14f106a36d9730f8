"""
Every option of every command is typed at least once, on a small region; an option that is added
without a line here fails.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path
from typing import Any

import geopandas as gpd
import pandas as pd
import pytest
import rasterio
import typer
import yaml
from shapely.geometry import box
from typer.testing import CliRunner

import butterfly_sdm as bs
from butterfly_sdm import cli
from butterfly_sdm.cli import app
from butterfly_sdm.errors import ButterflySDMError
from butterfly_sdm.mapping.map_file import read_tags

TINY: dict[str, Any] = {"size_px": 1024, "n_sites": 50, "n_species": 3}
NETWORK = (
    "--set train.model.kind=network --set train.model.backbone=test_convnext --set "
    "train.model.width=null --set train.model.window_px=32 --set train.model.margin_px=0 --set "
    "train.model.embedding=8 --set train.model.head_width=8 --set train.fit.epochs=1"
)

#: name: what is typed. {new} is an empty folder; other names are those of the fixture ``small``.
TYPED = {
    "version": "--version",
    "verbose": "--verbose look {walks}",
    "demo": "demo --small --seed 3 --out {new} --set train.model.kind=mean_rate "
    "--set build.tiles.size_px=32 --json",
    "look": "look {walks} --column 'eventDate=Seen on' --out {new} --json",
    "build": "build {config} --out {new}/dataset --explain {new}/left_out.csv "
    "--set build.records.min_visits=4 --json",
    "train": "train {config} --dataset {dataset} --out {new}/run "
    "--set train.model.options.neighbours=2 --json",
    "evaluate": "evaluate {run} --dataset {dataset} --out {new} "
    "--set evaluate.baselines=[mean_rate] --json",
    "ladder": "evaluate --ladder {config} --dataset {dataset} --out {new} --set evaluate.folds=2 "
    "--set 'evaluate.ladder=[mean_rate, nearest_sites]' --json",
    "map": "map {run} {west} {east} --bands blue,green,red,nir --out {new}/map.tif "
    "--set map.stride_px=64 --set map.beside=[] --json",
    "map again": "map {run} {west} {east} --out {again} --force --given {seen} --dataset {dataset} "
    "--set map.stride_px=64 --set map.beside=[]",
    "embed": "embed {west} --weights {transformer} --backbone vit_tiny_patch16_224 --like "
    "ViTSmall16_Weights.SENTINEL2_ALL_DINO --bands blue,green,red,nir --out {new}/embedded.tif "
    "--json",
    "community": "community {run} --dataset {dataset} --set community.folds=3 --json",
    "predict": "predict {run} {places} --given {seen} --visits 5 --dataset {dataset} "
    "--out {new}/told.csv --set map.withhold=[] --json",
    "view": "view {map} --export {new}/page.html --limit 0.5 --overlay {squares} --no-sites",
    "view served": "view {map} --port 8123 --sites --dataset {dataset}",
    "plan": "plan {run} --candidates {squares} --places validation --sites 2 --visits 3 "
    "--species 'Pieris rapae' --dataset {dataset} --out {new} --set plan.protect_m=1000 --json",
    "replay": "plan {run} --replay --out {new} --set plan.replay.draws=2 --set plan.replay.add=2 "
    "--set plan.replay.start_sites=10 --json",
    "report": "report {run} --dataset {dataset} --out {new}/page.html --json",
    "compare": "compare {run} {other} --dataset {dataset} --json",
    "change": "compare {config} --change train.model.kind=mean_rate --seeds 1 --dataset {dataset} "
    "--out {new} --set evaluate.folds=2 --json",
    "search": "search {config} --trials 1 --dataset {dataset} --out {new} --json "
    "--set search.method=random --set 'search.space={{train.fit.learning_rate: [0.001, 0.01]}}' "
    f"{NETWORK}",
    "check": "check {dataset} {run} {map} --json",
    "plugins": "plugins --json",
    "plugin init": "plugin modan init --config {new}/modan.yaml --json",
    "plugin": "plugin modan train --config {modan} --out {new}/run --set epochs=1 "
    "--set tune_epochs=1 --set accelerator=cpu --json",
    "init": "init {new}/mine.yaml --records {walks} --scene {west} "
    "--column 'eventDate=Seen on' --force",
    "init all": "init {new}/all.yaml --all",
    "doctor": "doctor --json",
}


#: what writes results that ``check`` verifies: one of their files
VERIFIED = {
    "evaluate": "per_site.csv",
    "ladder": "ladder.md",
    "change": "comparison.png",
    "search": "best.yaml",
    "plan": "plan.gpx",
    "replay": "draws.csv",
    "report": "page_species.csv",
}


def walks(path: Path) -> Path:
    """Write a table of records with odd headers."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["Species", "Seen on", "Grid ref"])
        for day in range(1, 6):
            rows.writerow(["Pieris rapae", f"{day}/6/2020", "ST8060"])
            rows.writerow(["Maniola jurtina", f"{day + 20}/6/2020", "ST8161"])
    return path


def medical(folder: Path) -> Path:
    """Write a few images with shared attributes, and settings of a plugin for them."""
    import numpy as np
    from PIL import Image

    draws = np.random.default_rng(0)
    rows = []
    for number in range(24):
        pixels = draws.integers(0, 255, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append((f"{number}.png", ("CT", "MR")[number % 2], number % 3, number % 2))
    pd.DataFrame(rows, columns=["path", "modality", "anatomy", "label"]).to_csv(
        folder / "images.csv", index=False
    )
    settings = {
        "name": "small",
        "collection": {"path": "images.csv"},
        "size_px": 16,
        "trunk": "small:4",
        "batch_size": 12,
    }
    (folder / "modan.yaml").write_text(yaml.safe_dump(settings))
    return folder / "modan.yaml"


def transformer(path: Path) -> Path:
    """Write the weights of a small transformer for the bands of Sentinel-2."""
    import timm
    import torch

    net = timm.create_model("vit_tiny_patch16_224", pretrained=False, in_chans=13, num_classes=0)
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a region, its data set, two runs, a community and a map, by name."""
    at = tmp_path_factory.mktemp("small")
    region = bs.simulate_region(at / "region", **TINY, tile_px=32, window_px=32)
    config = yaml.safe_load(region.config.read_text())
    config["train"] = {"model": {"kind": "nearest_sites"}}
    config["build"]["split"] = {
        "method": "blocks",
        "distance_m": 2000,
        "fractions": [0.7, 0.3, 0.0],
    }
    config["map"] = {"stride_px": 32, "beside": []}
    region.config.write_text(yaml.safe_dump(config))
    dataset = bs.build(region.config, at / "dataset")
    run = bs.train(region.config, at / "run", dataset=dataset)
    other = bs.train(
        region.config, at / "other", dataset=dataset, overrides=["train.model.kind=mean_rate"]
    )
    bs.fit_community(run)
    overrides = ["map.layers=[applicability]"]
    made = bs.predict_map(run, out=at / "map.tif", overrides=overrides)
    again = bs.predict_map(run, out=at / "again.tif")
    middle = dataset.sites.iloc[:2]
    pd.DataFrame({"place": ["A", "B"], "lon": middle.lon, "lat": middle.lat}).to_csv(
        at / "places.csv", index=False
    )
    seen = {"place": "A", "species": dataset.species[0], "date": "2019-06-01", "complete": "yes"}
    pd.DataFrame([seen | {"lon": middle.lon.iloc[0], "lat": middle.lat.iloc[0]}]).to_csv(
        at / "seen.csv", index=False
    )
    with rasterio.open(made.path) as raster:
        left, bottom = raster.bounds[:2]
        squares = [
            box(left + x, bottom + y, left + x + 1000, bottom + y + 1000)
            for x in (1000, 3000, 5000)
            for y in (1000, 4000)
        ]
        gpd.GeoDataFrame(geometry=squares, crs=raster.crs).to_file(at / "squares.gpkg")
    (at / "medical").mkdir()
    return {
        "config": region.config,
        "west": region.scenes[0],
        "east": region.scenes[1],
        "dataset": dataset.folder,
        "run": run.folder,
        "other": other.folder,
        "map": made.path,
        "again": again.path,
        "places": at / "places.csv",
        "seen": at / "seen.csv",
        "squares": at / "squares.gpkg",
        "walks": walks(at / "walks.csv"),
        "modan": medical(at / "medical"),
        "transformer": transformer(at / "transformer.pth"),
    }


def told(output: str) -> dict[str, Any]:
    """Return the JSON that a command printed last."""
    return json.loads(output.strip().splitlines()[-1])


def served(new: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Let ``view`` serve nothing, and keep what it was asked for."""
    asked: dict[str, Any] = {}

    class Server:
        server_address = ("127.0.0.1", 8123)

        def serve_forever(self) -> None:
            raise KeyboardInterrupt

        def server_close(self) -> None:
            asked["closed"] = True

    def make_server(path: Path, **options: Any) -> Server:
        asked.update(options, path=path)
        return Server()

    monkeypatch.setattr("butterfly_sdm.mapping.viewer.make_server", make_server)
    return asked


def shows(name: str, output: str, new: Path, small: dict[str, Path]) -> None:
    """Look for what the options of an invocation were to do."""
    files = {path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file()}
    if name == "version":
        assert output == f"butterfly-sdm {bs.__version__}\n"
    elif name == "demo":
        assert Path(told(output)["run"]) == new / "run"
        assert "region/config.yaml" in files and "map.tif" in files
        assert bs.Run.open(new / "run").config.train.model.kind == "mean_rate"
    elif name == "look":
        assert "eventDate: Seen on" in told(output)["yaml"] and "records.png" in files
    elif name == "build":
        assert bs.Dataset.open(new / "dataset").visits.min() >= 4
        assert pd.read_csv(new / "left_out.csv").reason.notna().all()
        assert told(output)["data set"] == str(new / "dataset")
    elif name == "train":
        assert bs.Run.open(new / "run").config.train.model.options == {"neighbours": 2}
    elif name == "evaluate":
        assert {"scores.csv", "per_species.csv"} <= files
        assert len(pd.read_csv(new / "scores.csv")) == 2
    elif name == "ladder":
        assert len(pd.read_csv(new / "ladder.csv")) == 2
    elif name == "map":
        assert files == {"map.tif"} and read_tags(new / "map.tif")["stride_px"] == 64
    elif name == "map again":
        assert read_tags(small["again"])["stride_px"] == 64
    elif name == "embed":
        with rasterio.open(new / "embedded.tif") as raster:
            assert raster.count == 192 and raster.res[0] == 160
    elif name == "predict":
        assert {"told.csv", "told_places.csv", "told_alike.csv"} <= files
        assert set(pd.read_csv(new / "told.csv").place) == {"A", "B"}
    elif name == "view":
        page = (new / "page.html").read_text(encoding="utf-8")
        assert re.search(r'"limits": ?\{"\d+": ?0.5\}', page) and '"sites":[]' in page
    elif name == "plan":
        assert len(pd.read_csv(new / "plan.csv")) == 2 and "plan.gpx" in files
        assert set(pd.read_csv(new / "plan.csv").visits) == {3}
    elif name == "replay":
        assert files
    elif name == "report":
        assert {"page.html", "page.md", "page_odmap.csv"} <= files
    elif name == "compare":
        assert "nearest" in told(output)["verdict"] or "run" in told(output)["verdict"]
    elif name == "change":
        assert "comparison.csv" in files
    elif name == "search":
        assert len(pd.read_csv(new / "trials.csv")) == 1 and "best.yaml" in files
    elif name == "check":
        assert told(output) == {str(small[key]): [] for key in ("dataset", "run", "map")}
    else:
        shows_of_settings(name, output, new, small)


def shows_of_settings(name: str, output: str, new: Path, small: dict[str, Path]) -> None:
    """Look for what ``plugins``, ``plugin`` and ``init`` were to do."""
    if name == "plugins":
        assert "modan" in told(output)
    elif name == "plugin init":
        assert "collection" in yaml.safe_load((new / "modan.yaml").read_text())
    elif name == "plugin":
        assert {"model.json", "history.csv"} <= {path.name for path in (new / "run").iterdir()}
        assert pd.read_csv(new / "run" / "history.csv").epoch.max() <= 1
    elif name == "init":
        config = bs.load_config(new / "mine.yaml")
        assert config.build.records.columns["eventDate"] == "Seen on"
        assert config.build.scenes.paths[0].name == small["west"].name
    elif name == "init all":
        assert "# weight_decay: 0.0001" in (new / "all.yaml").read_text()


def can_be_verified(new: Path, name: str) -> None:
    """Look whether ``check`` takes the results of a verb for what they are, whole or not."""
    (new / "page.html").touch()  # where no report was written, something of somebody else
    assert bs.check(new) == bs.check(new / name) == []
    (new / name).write_bytes((new / name).read_bytes() + b" ")
    assert all(f"{name} was changed" in bs.check(path)[0] for path in (new, new / name))
    for card in new.glob("*.json"):
        card.unlink()
    with pytest.raises(ButterflySDMError, match=r"no [a-z]+\.json that lists it|nor a card of"):
        bs.check(new)
    with pytest.raises(ButterflySDMError, match=r"is no artefact itself.*: .*new$"):
        (new.parent / "other").mkdir()
        (new / "run.json").touch()
        bs.check(new.parent)


@pytest.mark.parametrize("name", list(TYPED))
def test_it_does_what_its_options_say(
    name: str, small: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "new"
    new.mkdir()
    monkeypatch.setattr(cli, "SMALL_REGION", TINY | {"size_px": 640, "n_sites": 8})
    if name == "init":
        (new / "mine.yaml").write_text("to be replaced")
    asked = served(new, monkeypatch) if name == "view served" else {}
    words = [word.format(new=new, **small) for word in shlex.split(TYPED[name])]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    if name == "view served":
        assert asked["port"] == 8123 and asked["closed"] and asked["path"] == small["map"]
        assert asked["sites"] is not None
    shows(name, result.stdout, new, small)
    if name in VERIFIED:
        can_be_verified(new, VERIFIED[name])


def test_no_option_of_any_command_is_left_out() -> None:
    group = typer.main.get_command(app)
    left = {}
    commands = group.commands  # type: ignore[attr-defined]
    for verb, command in {"": group, **commands}.items():
        typed: set[str] = set()
        for line in TYPED.values():
            words = shlex.split(line)
            if verb in words or (not verb and words[0].startswith("-")):
                typed |= set(words)
        for option in command.params:
            names = {*option.opts, *option.secondary_opts}
            if option.param_type_name == "option" and option.name != "help":
                both = [option.opts, option.secondary_opts] if option.secondary_opts else [names]
                if not all(typed & set(way) for way in both):
                    left[f"{verb} {option.name}".strip()] = sorted(names)
    tools = {"install_completion", "show_completion"}  # of the shell
    assert {name: names for name, names in left.items() if name not in tools} == {}
