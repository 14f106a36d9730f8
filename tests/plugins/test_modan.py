"""
Medical pretraining: the loss by hand, folds by patient, layouts, DICOM tags, bad inputs, and that
it learns attributes.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from butterfly_sdm.core.settings import load_settings
from butterfly_sdm.errors import ConfigError, DataError, MissingFileError
from butterfly_sdm.losses.contrastive import ContrastiveLoss
from butterfly_sdm.losses.pairs import jaccard
from butterfly_sdm.plugins.classifier_scores import student_interval
from butterfly_sdm.plugins.images import read_image
from butterfly_sdm.plugins.modan import collections
from butterfly_sdm.plugins.modan.method import (
    Modan,
    _divisions,
    _validation,
    pretraining_rate,
    shared_cosines,
)
from butterfly_sdm.plugins.networks import unit
from butterfly_sdm.plugins.runner import evaluate, predict, train

from . import made


def _config(table, **changes):
    value = {
        "accelerator": "cpu",
        "size_px": 16,
        "trunk": "small:4",
        "collection": {"path": str(table)},
        "epochs": 8,
        "crop": 0.7,
        "batch_size": 16,
        "tune_epochs": 2,
        "folds": 2,
        "repeats": 1,
        "fractions": [0.6, 0.0, 0.4],
        "flip": False,
    }
    return load_settings(Modan.config, value | changes)[0]


def test_the_loss_is_the_papers_sum():
    torch.manual_seed(0)
    z, temperature, threshold = unit(torch.randn(6, 4)).double(), 0.5, 0.3
    sets = [
        {"CT", "chest"},
        {"CT", "chest"},
        {"CT", "knee"},
        {"MR", "knee"},
        {"MR", "chest"},
        {"US", "head"},
    ]
    names = sorted(set().union(*sets))
    labels = torch.tensor([[float(name in own) for name in names] for own in sets])
    losses = []
    for a in range(6):
        weights = {p: len(sets[a] & sets[p]) / len(sets[a] | sets[p]) for p in range(6) if p != a}
        positives = {p: w for p, w in weights.items() if w >= threshold}
        if not positives:
            continue  # the only ultrasound image has none
        total = sum(np.exp(float(z[a] @ z[k]) / temperature) for k in range(6) if k != a)
        terms = [
            w * (float(z[a] @ z[p]) / temperature - np.log(total)) for p, w in positives.items()
        ]
        losses.append(-sum(terms) / len(positives))
    found = ContrastiveLoss(temperature)(z.float(), jaccard(labels, threshold=threshold))
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-5)


def test_cosines_are_grouped_by_shared_attributes():
    z = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, -1]])
    labels = torch.tensor([[1.0, 0, 1, 0], [1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 0, 1]])
    found = shared_cosines(z, labels)
    assert found == {
        "cosine_shared_0": 0.0,
        "cosine_shared_1": pytest.approx(-1 / 3),
        "cosine_shared_2": 1.0,
    }


def test_images_that_share_more_lie_closer_and_folds_give_intervals(tmp_path):
    run = train(
        Modan(),
        "modan",
        _config(made.medical(tmp_path / "data", count=12), epochs=12),
        tmp_path / "run",
    )
    report = evaluate(run)
    m = report.metrics
    assert m["cosine_shared_2"] > m["cosine_shared_1"] > m["cosine_shared_0"]
    assert len(report.tables["folds"]) == 2
    assert m["auc_fine_tuned_low"] <= m["auc_fine_tuned"] <= m["auc_fine_tuned_high"]
    assert 0 <= m["p_fine_tuned_against_scratch"] <= 1 and {"auc_scratch", "auc_probe"} <= set(m)
    assert report.arrays["embeddings"].shape[0] == len(report.tables["embedded"])
    assert set(report.tables["predictions"]["label"]) == {"clear", "corner"}
    table = pd.read_csv(predict(run, tmp_path / "data" / "CT_chest_0.png"))
    assert table[["p_clear", "p_corner"]].sum(axis=1).tolist() == pytest.approx([1.0])


def test_without_labels_it_gives_embeddings(tmp_path):
    table = made.medical(tmp_path / "data")
    pd.read_csv(table).drop(columns="label").to_csv(table, index=False)
    run = train(Modan(), "modan", _config(table, epochs=1), tmp_path / "run")
    assert set(evaluate(run).metrics) == {"cosine_shared_0", "cosine_shared_1", "cosine_shared_2"}
    assert list(pd.read_csv(predict(run, tmp_path / "data")))[:2] == ["path", "z_0"]


def test_the_embedding_is_not_measured_where_every_image_was_trained_on(tmp_path):
    table = made.medical(tmp_path / "data")
    run = train(Modan(), "modan", _config(table, fractions=[1, 0, 0], epochs=1), tmp_path / "run")
    metrics = evaluate(run).metrics
    assert "auc_probe" in metrics and not any(name.startswith("cosine") for name in metrics)
    unlabelled = replace(Modan().load(run.config), task=None)
    with pytest.raises(DataError, match=r"All 40 images were trained on.* last of fractions"):
        Modan().evaluate(run.config, unlabelled, run)


def test_patients_stay_in_one_part_and_one_fold(tmp_path):
    config = _config(made.medical(tmp_path / "data", count=12), repeats=2, validation_share=0.3)
    data = Modan().load(config)
    assert (data.table.groupby("patient")["split"].nunique() == 1).all()
    for _, _, train_rows, test_rows in _divisions(config, data.task):
        assert not set(data.task.group[train_rows]) & set(data.task.group[test_rows])
        held_out = _validation(config, data.task, train_rows)
        assert len(held_out) and not set(data.task.group[held_out]) & set(
            data.task.group[np.setdiff1d(train_rows, held_out)]
        )


def test_a_cap_can_be_drawn_at_random_always_alike(tmp_path):
    for number in range(40):
        made.save(tmp_path / "CT" / "chest" / "nodule" / f"{number:02d}.png", np.zeros((8, 8)))
    first, drawn, again = (
        collections.radimagenet(tmp_path, 10, drawn=way)["path"].tolist()
        for way in (False, True, True)
    )
    assert drawn == again == sorted(drawn) and len(set(drawn)) == 10
    assert first == sorted(first) and first[-1].endswith("09.png") and drawn != first
    everything = collections.radimagenet(tmp_path, None, drawn=True)["path"].tolist()
    assert everything == collections.radimagenet(tmp_path, None)["path"].tolist()


def test_the_rate_rises_and_falls_as_in_the_authors_code(tmp_path):
    config = _config(tmp_path, epochs=1000, schedule="steps")
    rates = {epoch: 0.05 * pretraining_rate(config, epoch) for epoch in range(1000)}
    assert rates[0] == pytest.approx(0.01) and rates[3] == rates[699] == pytest.approx(0.05)
    falls = [epoch for epoch in range(4, 1000) if rates[epoch] < rates[epoch - 1]]
    assert falls == [700, 800, 900] and rates[999] == pytest.approx(5e-5)
    assert {pretraining_rate(_config(tmp_path), epoch) for epoch in range(8)} == {1.0}


def test_the_papers_test_has_the_same_folds_in_every_repeat_and_one_mean_of_each(tmp_path):
    table = made.medical(tmp_path / "data")
    config = _config(table, epochs=1, tune_epochs=1, repeats=3, test="means", scratch=False)
    run = train(Modan(), "modan", config, tmp_path / "run")
    report = evaluate(run)
    folds = report.tables["folds"]
    assert folds["repeat"].tolist() == [1, 1, 2, 2, 3, 3]
    by_hand = folds.groupby("repeat")["fine_tuned"].mean()
    mean, _, high = student_interval(by_hand.tolist())
    assert report.metrics["auc_fine_tuned"] == pytest.approx(mean)
    assert report.metrics["auc_fine_tuned_high"] == pytest.approx(min(high, 1))
    task = Modan().load(config).task
    parts = [test.tolist() for _, _, _, test in _divisions(config, task)]
    assert parts[:2] == parts[2:4] == parts[4:]
    others = [test.tolist() for _, _, _, test in _divisions(_config(table, repeats=3), task)]
    assert others[:2] != others[2:4]


def test_radimagenet_folders_are_read_with_a_cap(tmp_path):
    for modality, region, name, count in (("CT", "chest", "nodule", 3), ("MR", "knee", "acl", 1)):
        for number in range(count):
            made.save(tmp_path / modality / region / name / f"{number}.png", np.zeros((4, 4)))
    table = collections.radimagenet(tmp_path, 2)
    assert table.groupby(["modality", "anatomy"]).size().to_dict() == {
        ("CT", "chest"): 2,
        ("MR", "knee"): 1,
    }
    with pytest.raises(DataError, match="the layout of RadImageNet"):
        collections.radimagenet(tmp_path / "CT" / "chest" / "nodule", None)


def test_mrnet_is_read_by_plane_and_finding(tmp_path):
    for part, names in (("train", ["0000", "0001"]), ("valid", ["1130"])):
        (tmp_path / part / "axial").mkdir(parents=True)
        for name in names:
            np.save(tmp_path / part / "axial" / f"{name}.npy", np.zeros((3, 4, 4), np.uint8))
        (tmp_path / f"{part}-acl.csv").write_text(
            "".join(f"{name},{number % 2}\n" for number, name in enumerate(names))
        )
    table = collections.mrnet(tmp_path, "axial", "acl")
    assert table["split"].tolist() == ["train", "train", "test"] and table["label"].tolist() == [
        "0",
        "1",
        "0",
    ]
    with pytest.raises(MissingFileError, match=r"There is no train-meniscus\.csv"):
        collections.mrnet(tmp_path, "axial", "meniscus")


def test_dicom_attributes_come_from_the_tags_and_what_was_dropped_is_counted(tmp_path):
    examples = pytest.importorskip("pydicom.examples")
    for number, (modality, part) in enumerate(
        [("CT", "CHEST"), ("MR", "Thorax"), ("MR", "KNEE"), ("MR", ""), ("", "")]
    ):
        dataset = examples.ct
        dataset.Modality, dataset.BodyPartExamined, dataset.PatientID = modality, part, f"P{number}"
        dataset.save_as(tmp_path / f"image{number}")  # DICOM files often have no ending
    (tmp_path / "notes.txt").write_text("x" * 200)
    table, dropped = collections.dicom_folder(tmp_path, {"knee": "Knie"})
    assert table[["modality", "anatomy"]].to_numpy().tolist() == [
        ["CT", "chest"],
        ["MR", "chest"],
        ["MR", "Knie"],
    ]
    assert dropped == {"no anatomy": 1, "no modality": 1, "no DICOM file": 1}
    more, _ = collections.dicom_folder(tmp_path, {}, require_all=False)
    assert len(more) == 4


@pytest.mark.parametrize(
    ("kind", "pixel", "bits", "colour"),
    [
        ("YBR_FULL", [76, 85, 255], 8, [254, 0, 0]),
        ("RGB", [255, 0, 100], 8, [255, 0, 100]),
        ("RGB", [65535, 0, 32768], 16, [255, 0, 128]),
    ],
)
def test_colours_of_dicom_are_red_green_and_blue_of_eight_bits(kind, pixel, bits, colour, tmp_path):
    dataset = pytest.importorskip("pydicom.examples").ct
    dataset.Rows = dataset.Columns = 8
    dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, 0
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = kind, 0
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelData = np.tile(pixel, 64).astype(f"uint{bits}").tobytes()
    dataset.save_as(tmp_path / "a.dcm")
    image = read_image(tmp_path / "a.dcm", 8, 3)
    np.testing.assert_allclose(image[:, 4, 4], colour, atol=2)


def test_the_files_that_pydicom_ships_are_read_or_counted(tmp_path, recwarn, caplog):
    import shutil

    pydicom_data = pytest.importorskip("pydicom.data")
    from pathlib import Path

    from butterfly_sdm.errors import ButterflySDMError

    root = Path(pydicom_data.__file__).parent / "test_files"
    if not root.is_dir():
        pytest.skip("pydicom was installed without its test files")
    for path in sorted(root.glob("*.dcm")):
        shutil.copy(path, tmp_path)
    table, dropped = collections.dicom_folder(tmp_path, {}, require_all=False)
    assert len(table) >= 20 and len(table) + sum(dropped.values()) == len(list(tmp_path.iterdir()))
    read = 0
    for path in table["path"]:
        try:
            image = read_image(Path(path), 16, 1)
        except ButterflySDMError:
            # a compression that needs another package, or damaged on purpose: named, not crashed
            continue
        assert image.shape == (1, 16, 16)
        read += 1
    assert read >= 15
    # one picture in many forms
    forms = ("dcmtk_+eb+cr", "dcmtk_+eb+cy+np", "jpeg_dcmtk", "rle_16bit", "rle_32bit")
    first, *others = (read_image(tmp_path / f"SC_rgb_{form}.dcm", 32, 3) for form in forms)
    assert all(np.abs(first.astype(int) - image).mean() < 4 for image in others)
    assert read_image(tmp_path / "examples_jpeg2k.dcm", 16, 3).std() > 10
    red, _, blue = read_image(tmp_path / "examples_palette.dcm", 16, 3).astype(int)
    assert np.abs(red - blue).mean() > 1  # its numbers are no shades of grey
    # oddities that do not hinder reading are not told
    assert not [warning for warning in recwarn if "pydicom" in warning.filename]
    assert not [record for record in caplog.records if record.name.startswith("pydicom")]


def test_bad_inputs_are_explained(tmp_path):
    table = made.medical(tmp_path / "data")
    rows = pd.read_csv(table)
    rows.assign(modality="CT", anatomy="knee").drop(columns="label").assign(modality="CT").to_csv(
        table, index=False
    )
    with pytest.raises(DataError, match="lacks the column 'scanner'"):
        Modan().load(_config(table, attributes=["modality", "scanner"]))
    with pytest.raises(DataError, match="All images have the same modality"):
        Modan().load(_config(table, attributes=["modality"]))
    with pytest.raises(DataError, match="All images have the same modality and anatomy"):
        Modan().load(_config(table, attributes=["modality", "anatomy"]))
    rows.to_csv(table, index=False)
    with pytest.raises(
        DataError, match=r"The class '.*' has 20 patients .* 21 folds need one each"
    ):
        Modan().load(_config(table, folds=21))
    with pytest.raises(DataError, match=r"labels of .* are all .clear.; two classes"):
        rows.assign(label="clear").to_csv(table, index=False)
        Modan().load(_config(table))
    rows.drop(columns="label").to_csv(tmp_path / "data" / "bare.csv", index=False)
    with pytest.raises(DataError, match="has no label"):
        Modan().load(_config(table, task={"path": str(tmp_path / "data" / "bare.csv")}))
    rows.to_csv(table, index=False)
    config = _config(table, folds=0)
    task = Modan().load(config).task
    task.table.drop(columns="split", inplace=True)
    with pytest.raises(ConfigError, match="folds = 0 evaluates on the split of the task"):
        next(iter(_divisions(config, task)))
