"""What the plugins share: reading images, splitting by group, drawing batches, scores, trunks."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from butterfly_sdm.errors import DataError, MissingFileError, ModelError
from butterfly_sdm.plugins import classifier_scores
from butterfly_sdm.plugins.collection import (
    check_groups,
    class_numbers,
    find_images,
    read_collection,
    split_by_group,
    with_split,
)
from butterfly_sdm.plugins.images import Images, read_arrays, read_image
from butterfly_sdm.plugins.networks import SmallResNet, load_weights, make_trunk
from butterfly_sdm.plugins.row_batches import balanced, paired, shuffled
from butterfly_sdm.plugins.views import random_view


def test_images_of_any_kind_come_in_one_shape(tmp_path):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "b.png")
    # a stack: the middle
    np.save(tmp_path / "c.npy", np.stack([np.zeros((8, 8)), grey / 252.0, np.ones((8, 8))]))
    for name in "abc":
        suffix = "npy" if name == "c" else "png"
        found = read_image(tmp_path / f"{name}.{suffix}", 8, 1)
        assert found.shape == (1, 8, 8) and found.dtype == np.uint8
        np.testing.assert_allclose(found[0], grey if name == "a" else grey * (255 / 252), atol=1)
    assert read_image(tmp_path / "a.png", 4, 3).shape == (3, 4, 4)


def test_the_dicom_files_of_pydicom_are_read_or_named(tmp_path):
    examples = pytest.importorskip("pydicom.examples")
    ct = read_image(examples.get_path("ct"), 32, 1)
    rgb = read_image(examples.get_path("rgb_color"), 32, 3)
    assert ct.std() > 10 and rgb.std() > 10
    dataset = examples.ct
    dataset.PhotometricInterpretation = "MONOCHROME1"
    dataset.save_as(tmp_path / "inverted.dcm")
    np.testing.assert_allclose(
        read_image(tmp_path / "inverted.dcm", 32, 1).astype(int), 255 - ct.astype(int), atol=1
    )


def test_an_unreadable_or_missing_image_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    np.save(tmp_path / "b.npy", np.full((4, 4), np.nan))
    np.save(tmp_path / "c.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for name in ("a.png", "b.npy", "c.npy"):
        with pytest.raises(
            DataError, match=rf"{name} is no readable image .* Remove it, or repair the file"
        ):
            read_image(tmp_path / name, 8, 1)
    with pytest.raises(MissingFileError, match="There is no image"):
        read_image(tmp_path / "d.png", 8, 1)


def test_grey_images_in_memory_come_in_the_usual_memory_format():
    grey = np.zeros((5, 8, 8), np.uint8)[:, None]
    assert Images(grey, 8, 1).batch(np.array([0, 3])).stride() == (64, 64, 8, 1)


def test_images_are_read_once_and_in_the_order_asked(tmp_path):
    for number in range(4):
        Image.fromarray(np.full((4, 4), number * 50, np.uint8)).save(tmp_path / f"{number}.png")
    images = Images([tmp_path / f"{number}.png" for number in range(4)], 4, 1)
    images.batch(np.array([0, 3]))
    (tmp_path / "3.png").unlink()
    assert (images.batch(np.array([3, 1, 3, 0]))[:, 0, 0, 0] * 255).round().tolist() == [
        150,
        50,
        150,
        0,
    ]
    with pytest.raises(DataError, match="Images in memory are uint8"):
        Images(np.zeros((2, 4, 4)), 4, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\na,b\n", "lacks the column 'path'; it has name, label"),
        ("path,other\na.png,b\n", "lacks the column 'label'"),
        ("path,label\n", "has no row"),
        ("path,label\na.png,b\na.png,c\n", r"names a\.png twice"),
    ],
)
def test_a_wrong_table_is_explained(text, message, tmp_path):
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_collection(tmp_path / "t.csv", ("label",))


def test_files_to_predict_are_found_in_folders_and_tables(tmp_path):
    for name in ("b.png", "a.jpg", "note.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_images(tmp_path)] == ["a.jpg", "b.png"]
    (tmp_path / "t.csv").write_text("path\nb.png\n", encoding="utf-8")
    assert find_images(tmp_path / "t.csv") == [tmp_path / "b.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        find_images(tmp_path / "empty")


@settings(max_examples=25, deadline=None)
@given(groups=st.lists(st.integers(0, 12), min_size=1, max_size=60), seed=st.integers(0, 5))
def test_no_group_is_ever_in_two_parts(groups, seed):
    parts = split_by_group(groups, (0.6, 0.2, 0.2), seed, [group % 3 for group in groups])
    check_groups(groups, parts.tolist(), "patient")
    assert set(parts) <= {"train", "validation", "test"}


def test_a_given_split_is_kept_and_checked():
    table = pd.DataFrame({"patient": ["a", "a", "b"], "split": ["train", "valid", "test"]})
    with pytest.raises(DataError, match="The patient a is in train and in validation"):
        with_split(table, (1, 0, 0), 0, group="patient")
    kept = with_split(table.assign(patient=["a", "c", "b"]), (1, 0, 0), 0, group="patient")
    assert kept["split"].tolist() == ["train", "validation", "test"]
    with pytest.raises(DataError, match="The split 'tset' is unknown"):
        with_split(table.assign(split="tset"), (1, 0, 0), 0, group="patient")
    with pytest.raises(DataError, match="fractions of a split sum to 1"):
        with_split(table.drop(columns="split"), (0.5, 0.1, 0.1), 0, group="patient")


def test_batches_hold_every_row_once_or_every_class_alike():
    rng = np.random.default_rng(0)
    drawn = list(shuffled(np.arange(10), 4, rng))
    assert sorted(np.concatenate(drawn)) == list(range(10)) and [len(batch) for batch in drawn] == [
        4,
        4,
        2,
    ]
    # a single row has no pair
    assert [len(batch) for batch in shuffled(np.arange(9), 4, rng)] == [
        4,
        4,
    ]
    classes = np.array([0] * 50 + [1] * 10)
    for batch in balanced(np.arange(60), classes, 12, rng):
        assert np.bincount(classes[batch]).tolist() == [6, 6]


@given(st.lists(st.integers(0, 4), min_size=2, max_size=40), st.integers(2, 9), st.integers(0, 9))
def test_batches_of_pairs_give_every_row_a_partner(classes, batch_size, seed):
    classes = np.array(classes)
    rows = np.arange(len(classes)) + 100
    drawn = list(paired(rows, classes, batch_size, np.random.default_rng(seed)))
    seen = np.concatenate(drawn)
    assert set(seen) == set(rows) and max(map(len, drawn)) <= batch_size
    counts = np.bincount(classes)
    assert len(seen) == len(rows) + sum(n % 2 for n in counts if n > 1)
    for batch in drawn:
        for row in batch:
            alone = counts[classes[row - 100]] == 1
            partners = [b for b in batch if classes[b - 100] == classes[row - 100] and b != row]
            assert alone or partners


def test_scores_of_hand_cases():
    label = np.array([0, 0, 1, 1])
    found = classifier_scores.classification_scores(
        label, np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]])
    )
    assert found["accuracy"] == 0.75 and found["auc"] == 1.0
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0.8) / 2)
    assert classifier_scores.equal_error_rate(label, np.array([0.1, 0.2, 0.8, 0.9])) == 0.0
    assert classifier_scores.equal_error_rate(label, np.array([0.9, 0.8, 0.2, 0.1])) == 1.0
    assert classifier_scores.equal_error_rate(
        np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.array([1, 2, 3, 6, 4, 7, 8, 9])
    ) == pytest.approx(0.25)
    assert classifier_scores.student_interval([0.5]) == (0.5, 0.5, 0.5)
    mean, low, high = classifier_scores.student_interval([1.0, 2.0, 3.0])
    assert (mean, high - mean) == (
        2.0,
        pytest.approx(4.302653 / 3**0.5),
    ) and mean - low == pytest.approx(high - mean)
    assert classifier_scores.paired_p_value([1, 2], [1, 2]) == 1.0
    with pytest.raises(DataError, match="are of 1 class; scores need at least 2"):
        classifier_scores.classification_scores(np.zeros(3, int), np.ones((3, 2)))


def test_random_views_stay_in_range_and_can_be_the_image_itself():
    images = torch.rand(4, 2, 8, 8)
    view = random_view(images)
    assert view.shape == images.shape and view.min() >= 0 and view.max() <= 1
    same = random_view(images, scale=(1, 1), flip=False, jitter=0)
    torch.testing.assert_close(same, images)
    flipped = random_view(images, scale=(1, 1), flip=True, jitter=0)
    for image, found in zip(images, flipped, strict=True):
        assert torch.allclose(found, image, atol=1e-5) or torch.allclose(
            found, image.flip(-1), atol=1e-5
        )


def test_a_share_of_the_views_loses_its_colour():
    images = torch.rand(200, 3, 4, 4)
    torch.manual_seed(0)
    views = random_view(images, scale=(1.0, 1.0), flip=False, jitter=0.0, grey=0.2)
    lost = (views[:, 0] == views[:, 1]).flatten(1).all(dim=1)
    assert 0.1 < lost.float().mean() < 0.3
    weights = torch.tensor([0.299, 0.587, 0.114])
    light = (images * weights[:, None, None]).sum(dim=1)
    torch.testing.assert_close(views[lost][:, 0], light[lost], rtol=0, atol=1e-4)
    torch.testing.assert_close(views[~lost], images[~lost], rtol=0, atol=1e-4)


def test_trunks_come_by_name_and_wrong_names_are_explained(tmp_path):
    trunk = make_trunk("small:4", 2)
    assert trunk(torch.zeros(2, 2, 16, 16)).shape == (2, trunk.num_features)
    with pytest.raises(ModelError, match=r"timm has no model 'resnett18'.*: resnet18"):
        make_trunk("resnett18", 1)
    with pytest.raises(ModelError, match="small:WIDTH"):
        make_trunk("small:wide", 1)
    with pytest.raises(ModelError, match="'small' has no published weights"):
        make_trunk("small:4", 1, weights="pretrained")
    with pytest.raises(ModelError, match="There are no weights at"):
        make_trunk("small:4", 1, weights=str(tmp_path / "none.safetensors"))


def test_weights_are_read_without_pickle_and_must_fit(tmp_path):
    trunk = SmallResNet(1, 4)
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in trunk.state_dict().items()}},
        tmp_path / "w.pth",
    )
    other = SmallResNet(1, 4)
    load_weights(other, tmp_path / "w.pth")
    assert all(
        torch.equal(a, b)
        for a, b in zip(trunk.state_dict().values(), other.state_dict().values(), strict=True)
    )
    with pytest.raises(ModelError, match="does not fit this network: it lacks stem"):
        load_weights(SmallResNet(1, 8), tmp_path / "w.pth")
    torch.save(trunk, tmp_path / "whole.pth")  # a pickled object
    with pytest.raises(ModelError, match="does not hold plain weights"):
        load_weights(other, tmp_path / "whole.pth")


def test_classes_are_numbered_by_name_and_a_missing_label_is_no_class():
    classes, numbers = class_numbers(pd.Series(["b", None, "a", "b"]))
    assert classes == ["a", "b"] and numbers.tolist() == [1, -1, 0, 1]
    with pytest.raises(DataError, match="The labels are all missing; two classes"):
        class_numbers(pd.Series([None, None], dtype=object))


@pytest.mark.parametrize(
    ("separator", "encoding"), [(",", "utf-8-sig"), (";", "utf-8"), ("\t", "utf-16")]
)
def test_tables_are_read_as_spreadsheets_write_them(separator, encoding, tmp_path):
    text = "path,label,note\nä.png,1,x\nb.png,2,\n".replace(",", separator)
    (tmp_path / "t.csv").write_text(text, encoding=encoding)
    table = read_collection(tmp_path / "t.csv", ("label",))
    assert table["path"].tolist() == [str(tmp_path / "ä.png"), str(tmp_path / "b.png")]
    assert table["label"].tolist() == ["1", "2"] and table["note"].isna().tolist() == [False, True]


def test_a_table_or_array_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"There is no table, file or folder .*t\.csv"):
        read_collection(tmp_path / "t.csv", ())
    (tmp_path / "t.csv").write_bytes(b"path\n\xff\n")
    with pytest.raises(DataError, match=r"t\.csv is no UTF-8 text .* Save it as CSV in UTF-8"):
        read_collection(tmp_path / "t.csv", ())
    (tmp_path / "t.csv").write_text('path\n"a\n')
    with pytest.raises(DataError, match=r"t\.csv is no readable table: \S.*\S$"):
        read_collection(tmp_path / "t.csv", ())
    np.savez(tmp_path / "a.npz", label=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"no readable \.npz of plain arrays"):
        read_arrays(tmp_path / "a.npz")


def test_predictions_are_one_row_each_with_the_likeliest_class():
    table = classifier_scores.prediction_table(["x"], np.array([[0.2, 0.8]]), ("a", "b"), "video")
    assert table.to_dict("records") == [{"video": "x", "predicted": "b", "p_a": 0.2, "p_b": 0.8}]


def test_an_interval_has_its_mean_between_its_ends():
    found = classifier_scores.interval_metrics("auc", [1.0, 2.0, 3.0])
    assert found["auc_low"] < found["auc"] == 2.0 < found["auc_high"]
    assert classifier_scores.interval_metrics("auc", [0.7]) == {"auc": 0.7}  # it has none


@pytest.mark.parametrize(
    ("names", "split", "label"),
    [
        (["a/1.png", "b/2.png"], None, ["a", "b"]),
        (["Train/a/1.png", "val/b/2.png"], ["train", "validation"], ["a", "b"]),
        (["test/1.png", "train/2.png"], ["test", "train"], None),
        (["train_a/1.png", "valid_b/2.png"], ["train", "validation"], ["a", "b"]),
        # CIFAR-100 has a class called train
        (["cup/1.png", "train/2.png"], None, ["cup", "train"]),
        (["test/train/1.png", "train/train/2.png"], ["test", "train"], ["train", "train"]),
        (["a/train/1.png", "b/test/2.png"], ["train", "test"], ["a", "b"]),
        (["1.png", "2.png"], None, None),
    ],
)
def test_folders_say_label_and_part(names, split, label, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    table = read_collection(tmp_path)
    assert table["path"].tolist() == [str(tmp_path / name) for name in names]
    for column, expected in (("split", split), ("label", label)):
        found = table[column].tolist() if column in table.columns else None
        assert found == expected


def test_arrays_of_images_may_have_their_channels_first(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (2, 3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels, labels=[4, 2])
    table = read_collection(tmp_path / "a.npz", ("label",))
    assert table["label"].tolist() == ["4", "2"]
    assert np.array_equal(read_image(table["path"][1], 8, 3), pixels[1])


def test_images_of_one_patient_are_judged_together_where_that_is_defined():
    label = np.array([0, 1, 0, 1])
    probability = np.array([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5], [0.2, 0.8]])
    together = classifier_scores.by_group(label, probability, np.array(["a", "b", "a", "c"]))
    assert together is not None and together[0].tolist() == [0, 1, 1]
    np.testing.assert_allclose(together[1], [[0.7, 0.3], [0.4, 0.6], [0.2, 0.8]])
    for groups in (None, np.arange(4), np.array(["a", "a", "b", "b"])):
        assert classifier_scores.by_group(label, probability, groups) is None
