"""
From files of videos to predictions: frames, sound and words are read, extractors are recorded in
the run, used again for new videos, and another one is refused.
"""

import logging
import re
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner

from butterfly_sdm.cli import app
from butterfly_sdm.core.settings import load_settings
from butterfly_sdm.errors import (
    ConfigError,
    DataError,
    MissingFileError,
    MissingPackageError,
    ModelError,
)
from butterfly_sdm.plugins.implihate import extractors
from butterfly_sdm.plugins.implihate.extractors import (
    Frames,
    LogMel,
    SoundEncoder,
    TextEncoder,
    extract_all,
    make_extractors,
)
from butterfly_sdm.plugins.implihate.features import read_features, read_labels
from butterfly_sdm.plugins.implihate.media import (
    find_videos,
    read_frames,
    read_sound,
    read_words,
)
from butterfly_sdm.plugins.implihate.method import Implihate
from butterfly_sdm.plugins.implihate.options import FrameOptions, ImplihateConfig
from butterfly_sdm.plugins.networks import make_trunk

from . import made

av = pytest.importorskip("av", reason="videos are read by PyAV: the extra video")
runner = CliRunner()


def _run(verb, config, *overrides):
    options = [part for override in overrides for part in ("--set", override)]
    return runner.invoke(app, ["plugin", "implihate", verb, "--config", str(config), *options])


def _weights(path, seed=0):
    torch.manual_seed(seed)
    trunk = make_trunk("small:4", 3)
    save_file({name: value.contiguous() for name, value in trunk.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def hatemm(tmp_path_factory):
    """Eight videos in folders as HateMM has them, with what is said in half of them."""
    root = tmp_path_factory.mktemp("hatemm")
    for number in range(8):
        kind = ("hate", "non_hate")[number % 2]
        hertz = (300, 2000)[number % 2]
        place = root / "HateMM" / f"{kind}_videos" / f"{kind}_video_{number}.mp4"
        made.film(place, hue=number % 2, hertz=hertz)
        if number < 4:
            words = ("I hate this terrible murder", "what a lovely day")[number % 2]
            place.with_suffix(".txt").write_text(words, encoding="utf-8")
    _weights(root / "image.safetensors")
    settings = {
        "name": "videos",
        "accelerator": "cpu",
        "media": "HateMM",
        "labels": "HateMM",
        "features": "features",
        "extract": ["frames", "log_mel", "hashed_text"],
        "frames": {
            "trunk": "small:4",
            "weights": "image.safetensors",
            "size_px": 16,
            "count": 3,
        },
        "encoder": [16, 8],
        "projection": 8,
        "cross": 4,
        "classifier": [8],
        "epochs": 1,
        "contrastive": "none",
        "classifier_epochs": 30,
        "classifier_learning_rate": 0.01,
        "batch_size": 8,
        "fractions": [0.75, 0.0, 0.25],
    }
    (root / "videos.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def trained(hatemm):
    result = _run("train", hatemm / "videos.yaml")
    assert result.exit_code == 0, result.output
    return hatemm


@pytest.mark.parametrize(
    ("ending", "codecs"),
    [
        (".mp4", ("mpeg4", "aac")),
        (".webm", ("libvpx", "libopus")),  # its header gives no length
        (".mkv", ("libx264", "libopus")),  # frames stored in another order than shown
        (".avi", ("mpeg4", "mp3")),
    ],
)
def test_frames_are_spread_evenly_and_sound_is_that_of_the_film(ending, codecs, tmp_path):
    if not set(codecs) <= av.codecs_available:
        pytest.skip(f"this FFmpeg writes no {' with '.join(codecs)}")
    film = made.film(tmp_path / f"v{ending}", codecs=codecs, hertz=440)
    levels = [np.asarray(frame)[..., 0].mean() for frame in read_frames(film, 4)]
    shown = [(level - 50) / 15 for level in levels]
    # the middles of four quarters of twelve frames; a frame may be off by one
    np.testing.assert_allclose(shown, [1.5, 4.5, 7.5, 10.5], atol=1.3)
    assert len(read_frames(film, 100)) in (12, 13)
    rate, sound = read_sound(film, 16_000)
    assert rate == 16_000 and len(sound) == pytest.approx(2 * rate, rel=0.05)
    spectrum = np.abs(np.fft.rfft(sound))
    assert spectrum.argmax() * rate / len(sound) == pytest.approx(440, abs=3)


@pytest.mark.parametrize("read", [read_frames, read_sound])
def test_a_film_without_what_decodes_it_says_how_to_install_that(read, tmp_path, monkeypatch):
    film = made.film(tmp_path / "v.mp4", frames=2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackageError, match="is read by PyAV, which is not installed: "):
        read(film, 4)


def test_sound_of_a_film_and_of_a_wav_give_nearly_the_same_features(tmp_path):
    from scipy.io import wavfile

    time = np.arange(2 * 44_100) / 44_100
    samples = (9000 * np.sin(2 * np.pi * 440 * time)).astype(np.int16)
    wavfile.write(tmp_path / "v.wav", 44_100, np.stack([samples, samples], axis=1))
    film = made.film(tmp_path / "v.mp4", hertz=440, codecs=("mpeg4", "aac"))
    listen = LogMel(rate=16_000)
    first, second = (listen.extract(path)["audio"][:32] for path in (film, tmp_path / "v.wav"))
    assert first.argmax() == second.argmax()
    # a tone is a line; beside it lies what the codec adds
    loud = second > second.max() - 6
    np.testing.assert_allclose(first[loud], second[loud], atol=3)
    # a film without sound has none, and one without pictures likewise
    assert listen.extract(made.film(tmp_path / "silent.mp4", hertz=None)) == {}


def test_features_of_a_film_are_the_mean_over_its_frames(tmp_path):
    weights = _weights(tmp_path / "w.safetensors")
    options = FrameOptions(trunk="small:4", weights=str(weights), size_px=32, count=3)
    film = made.film(tmp_path / "v.mp4", frames=6)
    found = Frames(options).extract(film)["image"]
    trunk = make_trunk("small:4", 3, weights=str(weights)).eval()
    frames = np.stack([np.asarray(frame) for frame in read_frames(film, 3)])
    images = torch.from_numpy(frames.transpose(0, 3, 1, 2)).float() / 255
    with torch.no_grad():
        expected = trunk((images - 0.5) / 0.25).mean(dim=0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_words_come_from_text_and_subtitles(tmp_path):
    (tmp_path / "a.txt").write_text("hello you", encoding="utf-8")
    (tmp_path / "a.srt").write_text(
        "1\n00:00:00,000 --> 00:00:01,000\n<i>hello</i>\n\n2\n00:00:01,000 --> 00:00:02,000\nyou\n",
        encoding="utf-8",
    )
    (tmp_path / "a.vtt").write_text(
        "WEBVTT\n\n00:00.000 --> 00:01.000\nhello you\n", encoding="utf-8"
    )
    texts = [read_words(tmp_path / f"a{ending}").split() for ending in (".txt", ".srt", ".vtt")]
    assert texts == [["hello", "you"]] * 3


def test_files_of_one_name_are_one_video(tmp_path):
    for name in ("a/v1.mp4", "b/v1.txt", "a/v2.mp4", "._v3.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    made.save(tmp_path / "v4" / "0.png", np.zeros((4, 4)))
    found = {video.name: set(video.files) for video in find_videos(tmp_path)}
    assert found == {"v1": {".mp4", ".txt"}, "v2": {".mp4"}, "v4": {"/"}}
    pd.DataFrame({"path": ["a/v2.mp4"], "transcript": ["said"]}).to_csv(
        tmp_path / "t.csv", index=False
    )
    (video,) = find_videos(tmp_path / "t.csv")
    assert video.name == "v2" and video.first((".txt",)) == "said"
    (tmp_path / "b" / "v2.mp4").write_bytes(b"")
    with pytest.raises(DataError, match=r"are both called v2\. Rename one"):
        find_videos(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no video; known endings are \.mp4"):
        find_videos(tmp_path / "empty")
    with pytest.raises(MissingFileError, match="There are no videos at"):
        find_videos(tmp_path / "nowhere")


def test_labels_are_folders_or_a_table_of_files(tmp_path, hatemm):
    assert read_labels(hatemm / "HateMM")["label"].value_counts().to_dict() == {
        "hate": 4,
        "non_hate": 4,
    }
    for column in ("path", "video_id"):
        table = pd.DataFrame({column: ["clips/a.mp4", "b.webm"], "label": ["x", "y"]})
        table.to_csv(tmp_path / "t.csv", index=False)
        assert read_labels(tmp_path / "t.csv")["video_id"].tolist() == ["a", "b"]


def test_extract_says_what_it_did_and_does_it_once(hatemm, tmp_path):
    for extracted in (8, 0):
        result = _run("extract", hatemm / "videos.yaml", f"features={tmp_path / 'out'}")
        assert result.exit_code == 0, result.output
        # long paths are wrapped, onto lines of their own
        told = dict(re.findall(r"^\s*(found|extracted)\s+(\d+)\s*$", result.output, re.MULTILINE))
        assert told == {"found": "8", "extracted": str(extracted)}
    found = read_features(tmp_path / "out")
    assert found.lengths == {"image": 16, "text": 1024, "audio": 32 * 9}
    assert found.present["text"].sum() == 4 and found.present["image"].all()
    assert found.extractors["frames"]["count"] == 3


def test_an_extractor_added_later_is_applied_and_another_is_refused(hatemm, tmp_path):
    config, _ = load_settings(ImplihateConfig, hatemm / "videos.yaml")
    videos = find_videos(hatemm / "HateMM")[:2]

    def extract(*names, count=3):
        frames = config.frames.model_copy(update={"count": count})
        made_now = make_extractors(names, config.model_copy(update={"frames": frames}))
        return extract_all(videos, tmp_path, made_now)["extracted"]

    assert extract("frames") == 2
    before = read_features(tmp_path).values["image"]
    assert extract("frames", "log_mel") == 2
    after = read_features(tmp_path)
    assert set(after.lengths) == {"image", "audio"} and set(after.extractors) == {
        "frames",
        "log_mel",
    }
    assert np.array_equal(after.values["image"], before)
    with pytest.raises(DataError, match="extracted by frames with count 3, not 4"):
        extract("frames", count=4)
    # features of one's own stay
    own = tmp_path / f"{videos[0].name}.npz"
    np.savez(own, text=np.ones(5, np.float32))
    np.savez(tmp_path / f"{videos[1].name}.npz", text=np.ones(5, np.float32))
    assert extract("hashed_text") == 0 and read_features(tmp_path).lengths == {"text": 5}


def test_a_run_predicts_new_videos_by_its_own_extractors(trained, tmp_path):
    config = trained / "videos.yaml"
    new = tmp_path / "new"
    made.film(new / "film.mp4", hue=0)
    made.film(new / "other.webm", hue=1, hertz=2000, codecs=("libvpx", "libopus"))
    (new / "broken.mp4").write_bytes((new / "film.mp4").read_bytes()[:500])
    result = _run("predict", config, f"inputs={new}")
    assert result.exit_code == 0, result.output
    table = pd.read_csv(trained / "runs" / "videos" / "predictions_new.csv", index_col="video_id")
    assert table["p_hate"].isna().to_dict() == {"broken": True, "film": False, "other": False}
    assert "cannot be decoded" in table.loc["broken", "error"]
    assert table.loc[["film", "other"], "predicted"].tolist() == ["hate", "non_hate"]
    # a single file, from a run that was moved, without the weights it was made with
    moved = shutil.copytree(trained / "runs" / "videos", tmp_path / "moved")
    settings = yaml.safe_load(config.read_text())
    settings["frames"]["weights"] = "lost.safetensors"
    (tmp_path / "v.yaml").write_text(yaml.safe_dump(settings))
    options = ["--config", str(tmp_path / "v.yaml"), "--out", str(moved)]
    options += ["--set", f"inputs={new / 'film.mp4'}"]
    result = runner.invoke(app, ["plugin", "implihate", "predict", *options])
    assert result.exit_code == 0, result.output
    again = pd.read_csv(moved / "predictions_new.csv", index_col="video_id")
    assert again.loc["film", "p_hate"] == pytest.approx(table.loc["film", "p_hate"], abs=1e-6)


def test_another_extractor_is_refused(trained, tmp_path):
    config = trained / "videos.yaml"
    film = made.film(tmp_path / "film.mp4")
    result = _run("predict", config, f"inputs={film}", "frames.count=5")
    assert result.exit_code == 2
    assert "trained on features made by frames with count 3, not 5" in " ".join(
        result.output.split()
    )
    other = _weights(tmp_path / "other.safetensors", seed=1)
    result = _run("predict", config, f"inputs={film}", f"frames.weights={other}")
    assert result.exit_code == 2 and "another file than the run was trained with" in " ".join(
        result.output.split()
    )
    (tmp_path / "cut.mp4").write_bytes(b"no video")
    result = _run("predict", config, f"inputs={tmp_path / 'cut.mp4'}")
    assert result.exit_code == 2 and "None of the 1 videos can be read" in " ".join(
        result.output.split()
    )


def test_a_run_on_features_of_ones_own_asks_for_such(tmp_path):
    features, labels = made.videos(tmp_path)
    settings = {"features": str(features), "labels": str(labels), "accelerator": "cpu"}
    small = {"encoder": [8], "projection": 4, "classifier": [4], "contrastive": "none"}
    settings |= small | {"classifier_epochs": 1, "name": "own"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(settings))
    assert _run("train", tmp_path / "own.yaml").exit_code == 0
    film = made.film(tmp_path / "film.mp4")
    result = _run("predict", tmp_path / "own.yaml", f"inputs={film}")
    assert result.exit_code == 2 and "features that were not extracted here" in " ".join(
        result.output.split()
    )
    result = _run("extract", tmp_path / "own.yaml")
    assert result.exit_code == 2 and "nothing to extract from" in " ".join(result.output.split())


def test_labelled_videos_without_features_are_told(tmp_path, caplog):
    features, labels = made.videos(tmp_path)
    (features / "v003.npz").unlink()
    config, _ = load_settings(
        ImplihateConfig, {"features": str(features), "labels": str(labels), "accelerator": "cpu"}
    )
    with caplog.at_level(logging.WARNING):
        Implihate().load(config)
    assert "1 of 48 labelled videos have no features, such as v003" in caplog.text


def test_encoders_of_words_and_sound_come_from_folders(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the extra encoders")
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hate", "love", "you"]
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    transformers.BertTokenizerFast(str(tmp_path / "bert" / "vocab.txt")).save_pretrained(
        tmp_path / "bert"
    )
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 8}
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=len(words), **sizes)).eval()
    bert.save_pretrained(tmp_path / "bert")
    read = TextEncoder(tmp_path / "bert")
    found = read.extract("hate you")["text"]
    with torch.no_grad():
        expected = bert(torch.tensor([[2, 5, 7, 3]])).last_hidden_state[0].mean(dim=0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert read.extract("you " * 2000)["text"].shape == (8,)  # longer than its window
    sound = transformers.Wav2Vec2Model(
        transformers.Wav2Vec2Config(
            conv_dim=(8, 8),
            conv_stride=(5, 4),
            conv_kernel=(10, 8),
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            **sizes,
        )
    )
    sound.save_pretrained(tmp_path / "sound")
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "sound")
    listen = SoundEncoder(tmp_path / "sound")
    film = made.film(tmp_path / "v.mp4", frames=4)
    assert listen.extract(film)["audio"].shape == (8,)
    assert listen.facts["kind"] == "wav2vec2" and len(listen.facts["weights"]) == 8
    with pytest.raises(ModelError, match="text_encoder needs a folder with config"):
        TextEncoder(tmp_path)
    (tmp_path / "bert" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no network that text_encoder can use"):
        TextEncoder(tmp_path / "bert")


def test_two_extractors_of_one_kind_are_refused(hatemm, monkeypatch):
    config, _ = load_settings(ImplihateConfig, hatemm / "videos.yaml")
    monkeypatch.setitem(extractors.EXTRACTORS, "mine", lambda config: LogMel())
    with pytest.raises(ConfigError, match="log_mel and mine both make audio features; name one"):
        make_extractors(["log_mel", "mine"], config)
    with pytest.raises(ConfigError, match="extract names nothing to make of them"):
        Implihate().extract(config.model_copy(update={"extract": ()}))
