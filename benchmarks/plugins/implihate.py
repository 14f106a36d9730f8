"""
Recognise from several modalities: three views of real digits, spoken digits with images, and the text of real videos.

python benchmarks/plugins/implihate.py [--seeds 5] [--only views|spoken|text]
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from experiment import arguments, repeat, report, shared

from butterfly_sdm.plugins.implihate.extractors import extract_all, make_extractors
from butterfly_sdm.plugins.implihate.method import Implihate, retrieval
from butterfly_sdm.plugins.runner import build, evaluate, train
from butterfly_sdm.settings import load_settings

SETTINGS = {
    "epochs": 60,
    "classifier_epochs": 40,
    "batch_size": 64,
    "modality_dropout": 0.2,
    "tune": False,
    "encoder": (256, 128),
    "projection": 128,
    "cross": 64,
    "classifier": (128,),
}
VIEWS = {"image": "fou", "text": "zer", "audio": "mor"}


def fit(settings: dict, out: Path) -> tuple:
    config, _ = load_settings(Implihate.config, settings)
    run = train(Implihate(), "implihate", config, out)
    return run, evaluate(run)


def views(folder: Path, per_class: int, seed: int) -> dict[str, float]:
    """Compare stages and modalities on three views of digits."""
    folder.mkdir(parents=True, exist_ok=True)
    data = np.load(shared() / "uci_digits_six_views.npz", allow_pickle=False)
    videos = np.array([f"digit_{row:04d}" for row in range(2000)])
    np.savez(folder / "views.npz", video_id=videos, **{key: data[name] for key, name in VIEWS.items()})
    rng = np.random.default_rng(seed)
    order = rng.permutation(2000)
    split = np.full(2000, "test", dtype=object)
    for digit in range(10):
        split[order[data["label"][order] == digit][:per_class]] = "train"
    labels = folder / f"labels_{per_class}_{seed}.csv"
    pd.DataFrame({"video_id": videos, "label": data["label"], "split": split}).to_csv(labels, index=False)
    base = SETTINGS | {"features": str((folder / "views.npz").resolve()), "labels": str(labels.resolve()), "seed": seed}
    found = {}
    for name, changes in {
        "classifier": {"contrastive": "none"},
        "one_stage": {"contrastive": "one_stage"},
        "two_stages": {},
        **{f"only_{key}": {"contrastive": "one_stage", "modalities": [key]} for key in VIEWS},
    }.items():
        run, result = fit(base | changes, folder / f"{name}_{per_class}_{seed}")
        found[name] = result.metrics["macro_f1"]
        if name in ("one_stage", "two_stages"):
            table = result.tables["modalities"].set_index("without")["macro_f1"]
            found |= {f"{name}_without_{key}": float(table[key]) for key in VIEWS}
        if name == "two_stages":
            # The encoders do not move in stage 2; with fresh cross-encoders they show what was there before.
            test, model = Implihate().load(run.config), run.model()
            after = retrieval(model, test, test.rows("test"))
            model.cross.load_state_dict(build(run.plugin, run.config, run.facts, "model").cross.state_dict())
            before = retrieval(model.eval(), test, test.rows("test"))
            for key in after:
                found |= {f"{key}_before": before[key], f"{key}_after": after[key]}
    found["best_single"] = max(found[f"only_{key}"] for key in VIEWS)
    return found


def spoken(folder: Path, seed: int) -> dict[str, float]:
    """Join spoken digits, as WAV files through the audio front end, with images of digits; a speaker is in one part only."""
    from scipy.io import wavfile

    data = np.load(shared() / "spoken_digits_8khz.npz", allow_pickle=False)
    pixels = np.load(shared() / "uci_digits_six_views.npz", allow_pickle=False)
    ends = np.cumsum(data["length"])
    names = [str(name) for name in data["name"]]
    media = folder / "media"
    media.mkdir(parents=True, exist_ok=True)
    for name, end, length in zip(names, ends, data["length"], strict=True):
        if not (media / f"{name}.wav").exists():
            wavfile.write(media / f"{name}.wav", 8000, data["samples"][end - length : end])
    extract_all(media, folder / "audio", make_extractors(["log_mel"]))
    rng = np.random.default_rng(seed)
    speakers = sorted({name.split("_")[1] for name in names})
    held_out = set(rng.permutation(speakers)[:2])
    label = np.array([int(name[0]) for name in names])
    split = np.array(["test" if name.split("_")[1] in held_out else "train" for name in names], dtype=object)
    # Images are as few per digit as voices, and noisy, so that neither modality suffices.
    image = np.zeros((len(names), 240), np.float32)
    halves = {"train": rng.permutation(200)[:100], "test": None}
    halves["test"] = np.setdiff1d(np.arange(200), halves["train"])
    for row, (digit, part) in enumerate(zip(label, split, strict=True)):
        image[row] = pixels["pix"][digit * 200 + rng.choice(halves[part])] + rng.normal(0, 4, 240)
    audio = np.stack([np.load(folder / "audio" / f"{name}.npz")["audio"] for name in names])
    np.savez(folder / f"both_{seed}.npz", video_id=np.array(names), image=image, audio=audio)
    pd.DataFrame({"video_id": names, "label": label, "split": split}).to_csv(folder / f"labels_{seed}.csv", index=False)
    base = SETTINGS | {
        "epochs": 20,
        "classifier_epochs": 15,
        "features": str((folder / f"both_{seed}.npz").resolve()),
        "labels": str((folder / f"labels_{seed}.csv").resolve()),
        "seed": seed,
    }
    found = {}
    for name, keys in {"both": ["image", "audio"], "only_image": ["image"], "only_audio": ["audio"]}.items():
        found[name] = fit(base | {"modalities": keys, "contrastive": "one_stage"}, folder / f"{name}_{seed}")[1].metrics[
            "macro_f1"
        ]
    return found


def text(folder: Path, seed: int) -> dict[str, float]:
    """Recognise the label of real videos from the text alone, with sentiment and emotion."""
    videos = json.loads((shared() / "hate_video_text.json").read_text())
    media = folder / "media"
    media.mkdir(parents=True, exist_ok=True)
    rows = {}
    for video in videos:
        name = f"video_{video['video_id']}"
        rows[name] = {"video_id": name, "label": video["label"], "split": video["split"]}
        (media / f"{name}.txt").write_text(f"{video['title']}\n{video['transcript']}", encoding="utf-8")
    pd.DataFrame(rows.values()).to_csv(folder / "labels.csv", index=False)
    base = SETTINGS | {
        "epochs": 20,
        "classifier_epochs": 20,
        "features": str((folder / "features").resolve()),
        "media": str(media.resolve()),
        "extract": ["hashed_text", "sentiment", "emotion"],
        "labels": str((folder / "labels.csv").resolve()),
        "contrastive": "one_stage",
        "seed": seed,
    }
    metrics = fit(base, folder / f"run_{seed}")[1].metrics
    return {key: metrics[key] for key in ("accuracy", "macro_f1", "auc")}


if __name__ == "__main__":
    options = arguments(__doc__)
    for per_class in (5, 20):
        if options.only not in (None, "views"):
            continue
        folder = options.out / "implihate_views"
        table = repeat(f"implihate_views_{per_class}", options.seeds, lambda s: views(folder, per_class, s), options.out)  # noqa: B023
        cost = "one_stage - (one_stage_without_image + one_stage_without_text + one_stage_without_audio) / 3"
        report(
            f"Three views of digits, {per_class} labels per class",
            table,
            {
                "stage 1 - classifier only >= 0.01": (
                    "one_stage - classifier",
                    lambda t: (t.one_stage - t.classifier).mean() >= 0.01,
                ),
                "two stages - classifier only >= 0": (
                    "two_stages - classifier",
                    lambda t: (t.two_stages - t.classifier).mean() >= 0,
                ),
                "three modalities - best single >= 0.05": (
                    "one_stage - best_single",
                    lambda t: (t.one_stage - t.best_single).mean() >= 0.05,
                ),
                "a lost modality costs, mean (<= 0.3 is graceful)": (cost, lambda t: t.eval(cost).mean() <= 0.3),  # noqa: B023
                "class retrieval after / before stage 2 >= 2": (
                    "retrieval_class_after / retrieval_class_before",
                    lambda t: (t.retrieval_class_after / t.retrieval_class_before).mean() >= 2,
                ),
            },
        )
    if options.only in (None, "spoken"):
        folder = options.out / "implihate_spoken"
        report(
            "Spoken digits of unheard speakers with noisy images",
            repeat("implihate_spoken", options.seeds, lambda s: spoken(folder, s), options.out),
            {
                "both - better single >= 0": (
                    "both - (only_image + only_audio + abs(only_image - only_audio)) / 2",
                    lambda t: (t.both - t[["only_image", "only_audio"]].max(axis=1)).mean() >= 0,
                )
            },
        )
    if options.only in (None, "text"):
        folder = options.out / "implihate_text"
        report("Text of real videos", repeat("implihate_text", options.seeds, lambda s: text(folder, s), options.out), {})
