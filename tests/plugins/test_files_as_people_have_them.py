"""
Weights, runs and collections as people of each field have them: grey images, other sizes, moved
runs, MedMNIST, DICOM without endings, one file that cannot be read, paths beside the YAML.
"""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from butterfly_sdm.cli import app
from butterfly_sdm.core.settings import load_settings
from butterfly_sdm.errors import ConfigError, DataError, ModelError
from butterfly_sdm.plugins.classifier_scores import interval_metrics
from butterfly_sdm.plugins.collection import find_images, npz_table
from butterfly_sdm.plugins.contract import PluginRun
from butterfly_sdm.plugins.dfcon.method import Dfcon
from butterfly_sdm.plugins.images import read_image
from butterfly_sdm.plugins.modan.collections import medmnist
from butterfly_sdm.plugins.modan.method import Modan
from butterfly_sdm.plugins.networks import TrunkAndHead, make_trunk
from butterfly_sdm.plugins.plugin import get_plugin, run_plugin, write_starter
from butterfly_sdm.plugins.refine.method import Refine
from butterfly_sdm.plugins.runner import evaluate, predict, train

from . import made
from .conftest import settings_of

runner = CliRunner()


def _saved(trunk, path, change=lambda name: name):
    save_file({change(n): v.contiguous() for n, v in trunk.state_dict().items()}, path)
    return str(path)


def test_weights_of_colour_images_fit_grey_ones(tmp_path):
    colour = make_trunk("resnet10t", 3)
    grey = make_trunk("resnet10t", 1, weights=_saved(colour, tmp_path / "w.safetensors"))
    image = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        expected = colour.eval()(image.repeat(1, 3, 1, 1))
        torch.testing.assert_close(grey.eval()(image), expected, atol=1e-4, rtol=1e-4)


def test_weights_of_grey_images_fit_coloured_ones(tmp_path):
    grey = make_trunk("small:4", 1)
    colour = make_trunk("small:4", 3, weights=_saved(grey, tmp_path / "w.safetensors"))
    image = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(colour.eval()(image.repeat(1, 3, 1, 1)), grey.eval()(image))


def test_a_transformer_takes_weights_of_another_size(tmp_path):
    large = make_trunk("vit_tiny_patch16_224", 3, size_px=96)
    weights = _saved(large, tmp_path / "w.safetensors")
    small = make_trunk("vit_tiny_patch16_224", 1, size_px=64, weights=weights)
    assert small.pos_embed.shape[1] == 17 and large.pos_embed.shape[1] == 37
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(small.state_dict()[name], large.state_dict()[name])


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone."])
def test_numbered_layers_and_prefixes_are_understood(prefix, tmp_path):
    trunk = make_trunk("resnet10t", 1)
    children = [name for name, _ in trunk.named_children()]

    def numbered(name):  # as torch.nn.Sequential(*children) names them, RadImageNet does so
        first, _, rest = name.partition(".")
        return f"{prefix}{children.index(first)}.{rest}"

    weights = _saved(trunk, tmp_path / "w.safetensors", numbered)
    again = make_trunk("resnet10t", 1, weights=weights)
    assert all(
        torch.equal(a, b)
        for a, b in zip(trunk.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_grey_images_are_scaled_as_the_colours_of_published_weights():
    trunk = make_trunk("resnet10t", 1)
    mean = np.mean(trunk.pretrained_cfg["mean"])
    net = TrunkAndHead(trunk, 2, published=True)
    assert net.mean.shape == (1, 1, 1, 1) and net.mean.item() == pytest.approx(mean)
    assert net.features(torch.rand(2, 1, 64, 64)).shape == (2, trunk.num_features)


@pytest.mark.parametrize("place", ["absolute", "beside the YAML"])
def test_weights_lie_beside_the_yaml_and_a_run_needs_them_no_more(place, tmp_path, monkeypatch):
    folder = tmp_path / "here"
    settings = settings_of("cmmd", folder)
    weights = folder / "start.safetensors"
    _saved(make_trunk("small:4", 1), weights)
    settings["weights"] = str(weights) if place == "absolute" else "start.safetensors"
    (folder / "cmmd.yaml").write_text(yaml.safe_dump(settings | {"name": "x"}))
    monkeypatch.chdir(tmp_path)  # not where the YAML lies
    run = run_plugin("cmmd", "train", folder / "cmmd.yaml")
    weights.unlink()
    moved = tmp_path / "elsewhere"
    shutil.move(run, moved)
    table = pd.read_csv(predict(PluginRun.open(get_plugin("cmmd"), "cmmd", moved), folder / "beta"))
    assert len(table) == 24


def test_a_program_travels_with_its_run(tmp_path):
    settings = settings_of("refine", tmp_path / "data")
    run = train(Refine(), "refine", load_settings(Refine.config, settings)[0], tmp_path / "run")
    expected = pd.read_csv(predict(run, tmp_path / "data" / "new"))
    (tmp_path / "data" / "model.ts").unlink()
    moved = shutil.move(tmp_path / "run", tmp_path / "moved")
    opened = PluginRun.open(Refine(), "refine", tmp_path / "moved")
    pd.testing.assert_frame_equal(pd.read_csv(predict(opened, tmp_path / "data" / "new")), expected)
    assert moved


def test_a_function_beside_the_yaml_makes_the_classifier(tmp_path):
    settings = settings_of("refine", tmp_path) | {"trust": False}
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(256, 3))\n"
    )
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 3))
    _saved(net, tmp_path / "mine.safetensors")
    settings |= {"model": "mine:make", "weights": "mine.safetensors", "name": "x"}
    (tmp_path / "refine.yaml").write_text(yaml.safe_dump(settings))
    folder = run_plugin("refine", "train", tmp_path / "refine.yaml")
    assert (folder / "model.json").is_file()


def test_an_error_in_a_later_backbone_keeps_the_finished_ones(tmp_path, monkeypatch):
    settings = settings_of("dfcon", tmp_path / "data")
    config = load_settings(Dfcon.config, settings)[0]
    plugin = Dfcon()
    stages = Dfcon.stages

    def broken(self, config, data, model, part):
        if part == "b":
            raise ModelError("The second cannot learn.")
        return stages(self, config, data, model, part)

    monkeypatch.setattr(Dfcon, "stages", broken)
    with pytest.raises(ModelError, match="The second"):
        train(plugin, "dfcon", config, tmp_path / "run")
    first = tmp_path / "run.partial" / "a.safetensors"
    stamp = first.stat().st_mtime_ns
    monkeypatch.setattr(Dfcon, "stages", stages)
    train(plugin, "dfcon", config, tmp_path / "run")
    assert (tmp_path / "run" / "a.safetensors").stat().st_mtime_ns == stamp


def test_what_cannot_be_made_is_told_before_the_first_backbone_learns(tmp_path):
    settings = settings_of("dfcon", tmp_path / "data")
    settings["backbones"]["b"]["weights"] = "lost.safetensors"
    config = load_settings(Dfcon.config, settings)[0]
    with pytest.raises(ModelError, match="There are no weights at"):
        train(Dfcon(), "dfcon", config, tmp_path / "run", progress=pytest.fail)


def test_a_finished_run_is_neither_trained_again_nor_replaced(finished):
    _, run = finished("cmmd")
    stamp = (run.folder / "model.safetensors").stat().st_mtime_ns
    train(run.plugin, "cmmd", run.config, run.folder, progress=pytest.fail)
    other = run.config.model_copy(update={"epochs": 3})
    with pytest.raises(ConfigError, match=r"holds a finished run of cmmd with other epochs"):
        train(run.plugin, "cmmd", other, run.folder)
    assert (run.folder / "model.safetensors").stat().st_mtime_ns == stamp


def test_other_data_are_scored_beside_the_first_not_over_them(finished, tmp_path):
    settings, run = finished("cmmd")
    plugin = run.plugin
    evaluate(PluginRun.open(plugin, "cmmd", shutil.copytree(run.folder, tmp_path / "run")))
    kept = (tmp_path / "run" / "metrics.json").read_bytes()
    table = made.scanners(tmp_path / "other", seed=1)
    other = settings | {"sources": [{"path": str(table)}], "name": "second"}
    opened = PluginRun.open(
        plugin, "cmmd", tmp_path / "run", load_settings(plugin.config, other)[0]
    )
    evaluate(opened)
    assert (tmp_path / "run" / "metrics.json").read_bytes() == kept
    (found,) = (tmp_path / "run" / "evaluations").glob("second-*/metrics.json")
    assert found.read_bytes() != kept


def test_one_unreadable_image_stops_no_prediction(finished, tmp_path):
    _, run = finished("cmmd")
    new = tmp_path / "new"
    for number in range(3):
        made.save(new / f"{number}.png", made.shape(0, 16, np.random.default_rng(number)))
    (new / "1.png").write_bytes(b"no image")
    (new / "._0.png").write_bytes(b"of macOS")
    table = pd.read_csv(predict(run, new))
    assert len(table) == 3 and "no readable image" in table["error"][1]
    assert table["p_level"].isna().tolist() == [False, True, False]
    assert table["predicted"].isna().tolist() == [False, True, False]
    for path in new.glob("[0-9].png"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="None of the 3 images can be read"):
        predict(run, new)


@pytest.mark.parametrize("name", ["cmmd", "dfcon", "modan", "refine"])
def test_one_unreadable_image_stops_no_training(name, tmp_path, caplog):
    settings = settings_of(name, tmp_path / "data")
    if name == "refine":
        settings["clean"] = settings["inputs"]
        for number in range(3, 8):
            made.save(tmp_path / "data" / "new" / f"{number}.png", np.zeros((16, 16)))
    broken = {
        "cmmd": ["alpha/0_0.png", "beta/1_3.png"],
        "dfcon": ["0/0.png", "5/4.png"],
        "modan": ["CT_chest_0.png", "MR_knee_7.png"],
        "refine": ["new/1.png", "new/2.png"],
    }[name]
    for path in broken:
        (tmp_path / "data" / path).write_bytes(b"cut off")
    plugin = get_plugin(name)
    run = train(plugin, name, load_settings(plugin.config, settings)[0], tmp_path / "run")
    report = evaluate(run)
    assert "images cannot be read and are left out. The first: " in caplog.text
    if "predictions" in report.tables and name != "refine":
        paths = " ".join(report.tables["predictions"]["path"])
        assert not any(path in paths for path in broken)
    if name == "dfcon":
        for path in report.tables["predictions"].query("label == 'fake'")["path"]:
            Path(path).write_bytes(b"cut off")
        with pytest.raises(DataError, match="Of the test part only real faces can be read"):
            evaluate(run)


def test_dicom_files_without_an_ending_are_found(tmp_path):
    pytest.importorskip("pydicom")
    mark = b"\0" * 128 + b"DICM"
    for name, content in (("IM0001", mark), ("README", b"text"), ("._IM0001", mark)):
        (tmp_path / name).write_bytes(content)
    made.save(tmp_path / "a.PNG", np.zeros((4, 4)))
    assert [path.name for path in find_images(tmp_path)] == ["IM0001", "a.PNG"]


def _mnist(path, *, colour=False, many=False, size=16, seed=0):
    rng = np.random.default_rng(seed)
    arrays = {}
    for part, count in (("train", 12), ("val", 4), ("test", 6)):
        kinds = rng.integers(2, size=count)
        images = np.stack([made.shape(int(kind), size, rng) for kind in kinds]).clip(0, 255)
        images = np.repeat(images[..., None], 3, axis=3) if colour else images
        arrays[f"{part}_images"] = images.astype(np.uint8)
        arrays[f"{part}_labels"] = np.tile(kinds[:, None], (1, 3)) if many else kinds[:, None]
    np.savez_compressed(path, **arrays)
    return arrays


@pytest.mark.parametrize("colour", [False, True])
def test_medmnist_files_are_tables_of_images(colour, tmp_path):
    arrays = _mnist(tmp_path / "breastmnist.npz", colour=colour)
    table = npz_table(tmp_path / "breastmnist.npz")
    assert table["split"].value_counts().to_dict() == {"train": 12, "validation": 4, "test": 6}
    assert table["label"].tolist()[:12] == arrays["train_labels"][:, 0].astype(str).tolist()
    fifth = read_image(table["path"][4], 16, 3)
    expected = arrays["train_images"][4]
    expected = expected.transpose(2, 0, 1) if colour else np.repeat(expected[None], 3, 0)
    assert np.array_equal(fifth, expected)
    assert read_image(table["path"][4], 8, 1).shape == (1, 8, 8)


@pytest.mark.parametrize("dtype", ["int64", "uint16"])
def test_bytes_in_wider_integers_keep_their_brightness(dtype, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8))
    images[1] //= 4  # a dark one
    np.savez(tmp_path / "dark.npz", images=images.astype(dtype), labels=np.arange(3))
    path = npz_table(tmp_path / "dark.npz")["path"][1]
    assert np.array_equal(read_image(path, 8, 1)[0], images[1])


def test_a_photograph_stands_upright(tmp_path):
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0] = 255  # as the sensor saw it; the phone was turned
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png", 8, 1)[0], np.rot90(pixels, -1))


def test_several_sets_of_medmnist_differ_in_modality_and_body_part(tmp_path):
    _mnist(tmp_path / "breastmnist_28.npz")
    _mnist(tmp_path / "pneumoniamnist.npz", seed=1)
    _mnist(tmp_path / "chestmnist.npz", many=True, seed=2)
    table = medmnist(tmp_path)
    kinds = set(zip(table["modality"], table["anatomy"], strict=True))
    assert kinds == {("US", "breast"), ("XR", "chest")}
    # several findings at once are no class
    assert table["label"].isna().sum() == 22
    assert set(table["label"].dropna()) == {
        f"{name} {n}" for name in ("breastmnist", "pneumoniamnist") for n in "01"
    }
    (tmp_path / "holidays.npz").write_bytes(b"")
    with pytest.raises(DataError, match=r"holidays\.npz is no two-dimensional set of MedMNIST"):
        medmnist(tmp_path)


def test_modan_goes_from_medmnist_to_predictions(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    _mnist(folder / "breastmnist.npz")
    _mnist(folder / "pneumoniamnist.npz", seed=1)
    value = {
        "accelerator": "cpu",
        "size_px": 16,
        "trunk": "small:4",
        "collection": {"layout": "medmnist", "path": str(folder)},
        "task": {"path": str(folder / "breastmnist.npz")},
        "epochs": 1,
        "batch_size": 16,
        "tune_epochs": 1,
        "folds": 0,
        "repeats": 2,
        "scratch": False,
    }
    run = train(Modan(), "modan", load_settings(Modan.config, value)[0], tmp_path / "run")
    metrics = evaluate(run).metrics
    assert 0 <= metrics["auc_fine_tuned_low"] <= metrics["auc_fine_tuned_high"] <= 1
    table = pd.read_csv(predict(run, folder / "pneumoniamnist.npz"))
    assert len(table) == 22 and set(table["predicted"]) <= {0, 1}


def test_intervals_of_shares_stay_shares():
    found = interval_metrics("auc", [0.99, 1.0, 0.9])
    assert found["auc_high"] == 1.0 and found["auc_low"] < 0.9
    assert interval_metrics("gap", [-1.0, 1.0])["gap_low"] < -1


def test_faces_have_labels_in_their_predictions_and_folders_in_capitals(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("Train", "Valid"):
        for label in ("Real", "Fake"):
            for number in range(6):
                image = rng.normal(120, 20, (32, 32)) + 60 * (label == "Fake")
                made.save(tmp_path / "data" / part / label / f"{number}.png", image)
    settings = settings_of("dfcon", tmp_path / "unused") | {"data": str(tmp_path / "data")}
    run = train(Dfcon(), "dfcon", load_settings(Dfcon.config, settings)[0], tmp_path / "run")
    table = evaluate(run).tables["predictions"]
    assert table["label"].value_counts().to_dict() == {"real": 6, "fake": 6}


def test_frames_of_one_video_are_judged_together(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for video in range(16):
        label = ("real", "fake")[video % 2]
        for frame in range(3):
            name = f"{video}_{frame}.png"
            made.save(tmp_path / name, rng.normal(100, 10, (32, 32)) + 60 * (label == "fake"))
            part = "train" if video < 8 else "test"
            rows.append({"path": name, "label": label, "group": video, "split": part})
    pd.DataFrame(rows).to_csv(tmp_path / "faces.csv", index=False)
    settings = settings_of("dfcon", tmp_path / "unused") | {"data": str(tmp_path / "faces.csv")}
    run = train(Dfcon(), "dfcon", load_settings(Dfcon.config, settings)[0], tmp_path / "run")
    report = evaluate(run)
    predicted = report.tables["predictions"].assign(group=np.repeat(np.arange(8), 3))
    means = predicted.groupby("group").agg({"score": "mean", "label": "first"})
    right = (means["score"] >= 0.5) == (means["label"] == "real")
    assert report.metrics["soft_vote_group_accuracy"] == pytest.approx(right.mean())


@pytest.mark.parametrize("name", ["cmmd", "dfcon", "implihate", "modan", "refine"])
def test_init_writes_settings_to_fill_in(name, tmp_path):
    path = tmp_path / f"{name}.yaml"
    result = runner.invoke(app, ["plugin", name, "init", "--config", str(path)])
    assert result.exit_code == 0
    config = get_plugin(name).config
    written = yaml.safe_load(path.read_text())
    needed = {key for key, field in config.model_fields.items() if field.is_required()}
    assert set(written) == needed | {"name"}
    uncommented = "\n".join(
        line.removeprefix("# ") for line in path.read_text().splitlines() if ": " in line
    )
    told = set(yaml.safe_load(uncommented)) if "\n  " not in uncommented else None
    assert told is None or told >= set(config.model_fields) - {"inputs"}
    for key in set(config.model_fields) - {"inputs"}:
        assert f"{key}:" in path.read_text(), key
    with pytest.raises(ConfigError, match="exists already"):
        write_starter(name, path)


def test_evaluate_prints_what_it_measured_and_check_what_is_kept(finished, tmp_path):
    settings, run = finished("cmmd")
    path = tmp_path / "cmmd.yaml"
    path.write_text(yaml.safe_dump(settings))
    shutil.copytree(run.folder, tmp_path / "runs" / "first")
    result = runner.invoke(app, ["plugin", "cmmd", "train", "--config", str(path)])
    assert result.exit_code == 0 and "trained before" in result.output
    assert f"  butterfly-sdm plugin cmmd evaluate --config {path}\n" in result.output
    given = ["--config", str(path), "--set", "seed=0"]
    result = runner.invoke(app, ["plugin", "cmmd", "evaluate", *given])
    assert result.exit_code == 0 and "target_auc" in result.output
    assert f"cmmd predict --config {path} --set seed=0 --set inputs=FILES\n" in result.output
    result = runner.invoke(app, ["plugin", "cmmd", "check", "--config", str(path)])
    assert result.exit_code == 0 and "kept" in result.output
    result = runner.invoke(app, ["plugin", "cmmd", "train"])
    assert result.exit_code == 2 and "init" in result.output
    result = runner.invoke(app, ["plugin", "cmmd", "evalute"])
    assert result.exit_code == 2 and "Did you mean 'evaluate'" in result.output


def test_an_official_split_without_validation_gets_one_of_whole_patients(tmp_path):
    table = made.scanners(tmp_path)
    rows = pd.read_csv(table)
    rows["split"] = np.where(rows["patient"].str[-1].astype(int) < 4, "train", "test")
    rows.to_csv(table, index=False)
    settings = settings_of("cmmd", tmp_path / "unused") | {"sources": [{"path": str(table)}]}
    plugin = get_plugin("cmmd")
    found = plugin.load(load_settings(plugin.config, settings)[0]).table
    assert set(found["split"]) == {"train", "validation", "test"}
    assert (found.groupby("patient")["split"].nunique() == 1).all()
    assert (found["split"] == "test").tolist() == (rows["split"] == "test").tolist()
