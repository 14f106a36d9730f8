"""
Hateful video: both losses by hand, missing modalities, feature layouts, extractors, bad inputs, and
that it learns.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from butterfly_sdm.core.settings import load_settings
from butterfly_sdm.errors import ConfigError, DataError, MissingFileError
from butterfly_sdm.plugins.implihate import extractors, method
from butterfly_sdm.plugins.implihate.features import Features, read_features, read_labels
from butterfly_sdm.plugins.implihate.media import find_videos
from butterfly_sdm.plugins.implihate.method import Implihate, cross_loss, joint_loss
from butterfly_sdm.plugins.networks import unit
from butterfly_sdm.plugins.runner import evaluate, predict, train

from . import made


def _config(folder, **changes):
    features, labels = made.videos(folder)
    value = {
        "accelerator": "cpu",
        "features": str(features),
        "labels": str(labels),
        "encoder": [16, 8],
        "projection": 8,
        "cross": 4,
        "classifier": [8],
        "epochs": 3,
        "classifier_epochs": 12,
        "batch_size": 8,
        "fractions": [0.5, 0.25, 0.25],
        "learning_rate": 0.01,
        "classifier_learning_rate": 0.01,
    }
    return load_settings(Implihate.config, value | changes)[0]


@pytest.fixture
def made_up(tmp_path):
    config = _config(tmp_path)
    data = Implihate().load(config)
    model = Implihate().network(config, data.facts, "model").eval()
    rows = data.rows("train")
    batch = data.features.batch(rows) | {"label": torch.from_numpy(data.label[rows])}
    return model, batch


def _by_hand(z, references, label, other, temperature, same):
    """Positives inside the log, negatives alone in the denominator, in plain loops."""
    losses = []
    for i in range(len(z)):
        up = [
            float(z[i] @ references[j])
            for j in range(len(references))
            if label[i] == other[j] and not (same and i == j)
        ]
        down = [float(z[i] @ references[j]) for j in range(len(references)) if label[i] != other[j]]
        if up and down:
            losses.append(
                np.log(np.sum(np.exp(np.array(down) / temperature)))
                - np.log(np.sum(np.exp(np.array(up) / temperature)))
            )
    return float(np.mean(losses))


def test_stage_one_is_the_sum_over_the_joint_embedding_and_the_affect(made_up):
    model, batch = made_up
    with torch.no_grad():
        encoded = model.encode(batch)
        label = batch["label"]
        expected = sum(
            _by_hand(z, z, label, label, 0.5, same=True)
            for z in (model.joint_embedding(encoded), model.side_embedding(encoded, "affect"))
        )
        assert float(joint_loss(model, batch, temperature=0.5)) == pytest.approx(expected, rel=1e-4)


def test_stage_two_runs_across_modalities_and_keeps_the_same_video_as_positive(made_up):
    model, batch = made_up
    with torch.no_grad():
        encoded = model.encode(batch)
        expected = 0.0
        for a, b in (("image", "text"), ("image", "audio"), ("text", "audio")):
            rows, columns = batch[f"{a}_present"].bool(), batch[f"{b}_present"].bool()
            first = model.cross_embedding(encoded, (a, b))[rows]
            second = model.cross_embedding(encoded, (b, a))[columns]
            label, other = batch["label"][rows], batch["label"][columns]
            expected += _by_hand(first, second, label, other, 0.5, False) + _by_hand(
                second, first, other, label, 0.5, False
            )
        # some audio is missing, and left out of both sides
        assert not batch["audio_present"].bool().all()
        assert float(cross_loss(model, batch, temperature=0.5)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("across", [False, True])
def test_the_released_loss_and_its_gradient_are_those_of_the_formula(across):
    """Similarities rescaled to [0, 1] over the batch; a sample is its own positive."""
    torch.manual_seed(0)
    raw = torch.randn(8, 4, requires_grad=True)
    label = torch.arange(8) % 2
    others = unit(torch.randn(8, 4)) if across else None

    def written_out():
        z, total = unit(raw), 0.0
        similarity = z @ (z if others is None else others).T
        scaled = (similarity - similarity.min()) / (similarity.max() - similarity.min())
        for i in range(8):
            positive = sum((scaled[i, j] / 0.05).exp() for j in range(8) if label[i] == label[j])
            negative = sum((scaled[i, j] / 0.05).exp() for j in range(8) if label[i] != label[j])
            total = total - (positive / negative).log() / 8
        return total

    def ours(released):
        weights = (label[:, None] == label).float()
        return method._contrast(unit(raw), weights, others, 0.05, released)

    expected, found = written_out(), ours(True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    (wanted,) = torch.autograd.grad(expected, raw)
    (gradient,) = torch.autograd.grad(found, raw)
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4)
    assert float(ours(False).detach()) != pytest.approx(float(expected.detach()), rel=0.01)


@pytest.mark.parametrize("released", [False, True])
def test_what_the_losses_are_of_equal_embeddings_is_counted(made_up, released):
    model, batch = made_up
    label = batch["label"].numpy()
    own = np.array([(label == value).sum() - (not released) for value in label])
    others = np.array([(label != value).sum() for value in label])
    joint = (1 + len(model.side)) * np.mean(np.log(others / own))
    alike = method._Collapsed(model)
    with torch.no_grad():
        found = joint_loss(alike, batch, temperature=0.05, released=released)
    assert float(found) == pytest.approx(joint, rel=1e-5)
    present = batch | {f"{key}_present": torch.ones(len(label)) for key in model.modalities}
    cross = len(model.pairs) * np.mean(np.log(others / (own + (not released))))
    with torch.no_grad():
        found = cross_loss(alike, present, temperature=0.05, released=released)
    assert float(found) == pytest.approx(cross, rel=1e-5)


def test_what_a_missing_modality_holds_has_no_influence(made_up):
    model, batch = made_up
    with torch.no_grad():
        missing = batch | {"audio_present": torch.zeros_like(batch["audio_present"])}
        other = missing | {"audio": torch.randn_like(batch["audio"]) * 100}
        torch.testing.assert_close(model(missing), model(other))
        assert not torch.allclose(model(batch), model(missing))


def test_two_stages_learn_three_classes_and_say_what_each_modality_adds(tmp_path):
    run = train(
        Implihate(),
        "implihate",
        _config(tmp_path / "data", folds=2, batch_size=12),
        tmp_path / "run",
    )
    history = pd.read_csv(run.folder / "history.csv")
    assert history["stage"].drop_duplicates().tolist() == ["joint", "cross", "classifier"]
    report = evaluate(run)
    assert report.metrics["macro_f1"] >= 0.7
    assert report.tables["modalities"]["without"].tolist() == [
        "nothing",
        "image",
        "text",
        "audio",
        "emotion",
    ]
    assert (
        len(report.tables["folds"]) == 2
        and 0 <= report.metrics["folds_auc_low"] <= report.metrics["folds_auc"] <= 1
    )
    assert report.tables["classes"]["class"].tolist() == ["explicit", "implicit", "none"]
    one = np.load(tmp_path / "data" / "features" / "v000.npz")
    # neither audio nor emotion
    np.savez(tmp_path / "new.npz", image=one["image"], text=one["text"])
    table = pd.read_csv(predict(run, tmp_path / "new.npz"), dtype={"video_id": str})
    assert table["video_id"].tolist() == ["new"]
    assert table[["p_explicit", "p_implicit", "p_none"]].sum(axis=1).tolist() == pytest.approx(
        [1.0]
    )


@pytest.mark.parametrize(
    "changes",
    [{"contrastive": "none"}, {"contrastive": "one_stage", "tune": False, "modality_dropout": 0.5}],
)
def test_stages_can_be_left_out(changes, tmp_path):
    run = train(
        Implihate(),
        "implihate",
        _config(tmp_path / "data", epochs=1, classifier_epochs=1, **changes),
        tmp_path / "run",
    )
    stages = pd.read_csv(run.folder / "history.csv")["stage"].tolist()
    assert stages == (
        ["classifier"] if changes["contrastive"] == "none" else ["joint", "classifier"]
    )


def test_features_come_from_folders_stacks_and_tables_alike(tmp_path):
    rng = np.random.default_rng(0)
    image, text = (
        rng.normal(size=(3, 2)).astype(np.float32),
        rng.normal(size=(3, 3)).astype(np.float32),
    )
    videos = ["a", "b", "c"]
    (tmp_path / "folder").mkdir()
    for row, video in enumerate(videos):
        frames = np.stack([image[row] - 1, image[row] + 1])
        np.savez(tmp_path / "folder" / f"{video}.npz", image=frames, text=text[row])
    np.savez(tmp_path / "stack.npz", video_id=np.array(videos), image=image, text=text)
    columns = {f"image_{k}": image[:, k] for k in range(2)} | {
        f"text_{k}": text[:, k] for k in range(3)
    }
    pd.DataFrame({"video_id": videos} | columns).to_csv(tmp_path / "table.csv", index=False)
    for source in ("folder", "stack.npz", "table.csv"):
        found = read_features(tmp_path / source)
        assert found.videos == ("a", "b", "c")
        np.testing.assert_allclose(found.values["image"], image, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.values["text"], text, rtol=1e-5, atol=1e-6)
    chosen = read_features(tmp_path / "folder").of(["c", "unknown"])
    assert chosen.present["image"].tolist() == [True, False] and not chosen.values["image"][1].any()
    (tmp_path / "words.csv").write_text("video_id;text_0\na;0,5\n")
    with pytest.raises(DataError, match=r"words\.csv has a feature that is no number.*0,5"):
        read_features(tmp_path / "words.csv")
    with pytest.raises(DataError, match="neither a film nor features"):
        read_features(Path(__file__))


def test_hatemm_is_read_by_its_annotation_or_its_folders(tmp_path):
    for folder, name in (
        ("hate_videos", "hate_video_1.mp4"),
        ("non_hate_videos", "non_hate_video_1.mp4"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
    assert read_labels(tmp_path)["label"].tolist() == ["hate", "non_hate"]
    pd.DataFrame(
        {
            "video_file_name": ["hate_video_1.mp4", "non_hate_video_1.mp4"],
            "label": ["Hate", "Non Hate"],
        }
    ).to_csv(tmp_path / "HateMM_annotation.csv", index=False)
    table = read_labels(tmp_path)
    assert table["video_id"].tolist() == ["hate_video_1", "non_hate_video_1"] and table[
        "label"
    ].tolist() == [
        "hate",
        "non_hate",
    ]


def test_text_and_sound_are_extracted_offline(tmp_path):
    from scipy.io import wavfile

    media = tmp_path / "media"
    media.mkdir()
    (media / "v1.txt").write_text("I love this wonderful day", encoding="utf-8")
    (media / "v2.txt").write_text("I hate this terrible murder", encoding="utf-8")
    time = np.arange(8000) / 8000
    for name, hertz in (("v1", 200), ("v2", 2000)):
        wavfile.write(
            media / f"{name}.wav",
            8000,
            (10000 * np.sin(2 * np.pi * hertz * time)).astype(np.int16),
        )
    names = ["hashed_text", "log_mel"]
    for package, name in (("vaderSentiment", "sentiment"), ("nrclex", "emotion")):
        pytest.importorskip(package)
        names.append(name)
    made_now = extractors.make_extractors(names, _config(tmp_path / "data"))
    videos = find_videos(media)
    for count in (2, 0):
        found = extractors.extract_all(videos, tmp_path / "out", made_now)
        assert found == {"found": 2, "extracted": count, "unreadable": 0}
    found = read_features(tmp_path / "out")
    assert found.lengths == {"text": 1024, "audio": 32 * 9, "emotion": 10, "sentiment": 3}
    sentiment = found.values["sentiment"]
    # positive, negative
    assert sentiment[0, 0] > sentiment[0, 1] and sentiment[1, 1] > sentiment[1, 0]
    emotion = found.values["emotion"]
    joy, anger = extractors.Emotion.names.index("joy"), extractors.Emotion.names.index("anger")
    assert emotion[0, joy] > 0 and emotion[1, anger] > 0
    low, high = found.values["audio"][:, :32].argmax(axis=1)
    assert low < high  # the band of 200 Hz lies below that of 2000 Hz


def test_mel_filters_cover_the_spectrum_once():
    filters = extractors.mel_filters(8000, 1024, 20)
    assert filters.shape == (20, 513) and filters.max() <= 1
    middle = slice(int(np.argmax(filters[0])), int(np.argmax(filters[-1])))
    np.testing.assert_allclose(filters.sum(axis=0)[middle], 1.0, atol=1e-9)


def test_bad_inputs_are_explained(tmp_path):
    config = _config(tmp_path)

    def load(**changes):
        return Implihate().load(config.model_copy(update=changes))

    labels = pd.read_csv(config.labels)
    cases = {
        "one": (labels.assign(label="none"), "The labels are all 'none'"),
        "twice": (pd.concat([labels, labels[:1]]), "labels the video v000 twice"),
        "columns": (
            labels.rename(columns={"label": "class"}),
            "lacks the column 'label'; it has video_id, class",
        ),
        "empty": (
            labels.assign(label=[None, *labels["label"][1:]]),
            "has no label for the video v000",
        ),
        "others": (
            labels.assign(video_id="x" + labels["video_id"]),
            "None of the 48 labelled videos has features, such as xv000",
        ),
    }
    for name, (table, message) in cases.items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)
        with pytest.raises(DataError, match=message):
            load(labels=tmp_path / f"{name}.csv")
    with pytest.raises(MissingFileError, match="There are no features at"):
        load(features=tmp_path / "nowhere")
    np.savez(tmp_path / "none.npz", video_id=np.array(["v000"]), smell=np.zeros((1, 3)))
    with pytest.raises(DataError, match="holds none of image, text, audio"):
        load(features=tmp_path / "none.npz")
    np.savez(tmp_path / "text.npz", video_id=np.array(["v000"]), text=np.zeros((1, 3)))
    with pytest.raises(DataError, match="The features have text; none of the modalities image"):
        load(features=tmp_path / "text.npz", modalities=("image",))
    (tmp_path / "damaged.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"is no readable \.npz of plain arrays\. Write it again"):
        load(features=tmp_path / "damaged.npz")
    with pytest.raises(ConfigError, match="extract names 'smell'; known are sentiment"):
        extractors.make_extractors(["smell"], config)
    other = Features(("v",), {"text": np.zeros((1, 7), np.float32)}, {"text": np.array([True])})
    with pytest.raises(
        DataError, match="text features have 7 numbers; the network was trained with 5"
    ):
        other.shaped({"text": 5})


def test_the_text_of_real_videos_goes_through(shared, tmp_path):
    for package in ("vaderSentiment", "nrclex"):
        pytest.importorskip(package)
    videos = json.loads((shared / "data" / "domains" / "hate_video_text.json").read_text())[:40]
    for number, video in enumerate(videos):
        (tmp_path / "media").mkdir(exist_ok=True)
        (tmp_path / "media" / f"n{number}.txt").write_text(
            f"{video['title']} {video['transcript']}", encoding="utf-8"
        )
    table = pd.DataFrame(
        {
            "video_id": [f"n{number}" for number in range(len(videos))],
            "label": [v["label"] for v in videos],
        }
    )
    table["label"] = np.where(table["label"] == "Normal", "normal", "not normal")
    table.to_csv(tmp_path / "labels.csv", index=False)
    value = {
        "accelerator": "cpu",
        "features": str(tmp_path / "features"),
        "labels": str(tmp_path / "labels.csv"),
        "media": str(tmp_path / "media"),
        "extract": ["hashed_text", "sentiment", "emotion"],
        "contrastive": "one_stage",
        "encoder": [16],
        "projection": 8,
        "classifier": [8],
        "epochs": 1,
        "classifier_epochs": 2,
        "fractions": [0.6, 0.2, 0.2],
    }
    run = train(
        Implihate(), "implihate", load_settings(Implihate.config, value)[0], tmp_path / "run"
    )
    assert 0 <= evaluate(run).metrics["accuracy"] <= 1
