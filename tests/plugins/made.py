"""Small data sets made for the plugins, each with a structure the plugin can learn."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(path)


def shape(kind: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw stripes of one direction: kind 0 level, 1 upright."""
    image = np.zeros((size, size))
    start = rng.integers(2)
    image[start::4, :] = image[start + 1 :: 4, :] = 200
    return (image if kind == 0 else image.T) + rng.uniform(0, 40, image.shape)


def scanners(folder: Path, *, count: int = 12, seed: int = 0, **columns: Any) -> Path:
    """
    Two classes seen by two scanners, the second a negative; a table of path, label, domain,
    patient.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for domain in ("alpha", "beta"):
        for kind in (0, 1):
            for number in range(count):
                image = shape(kind, 16, rng)
                name = f"{domain}/{kind}_{number}.png"
                save(folder / name, 255 - image if domain == "beta" else image)
                row = {"path": name, "label": ("level", "upright")[kind], "domain": domain}
                rows.append(row | {"patient": f"{domain}{kind}{number // 2}"})
    path = folder / "table.csv"
    pd.DataFrame(rows).assign(**columns).to_csv(path, index=False)
    return path


def medical(folder: Path, *, count: int = 10, seed: int = 0) -> Path:
    """
    Two modalities (bright or dark), two anatomies (stripes), a label (a corner), patients of two
    images.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for modality in ("CT", "MR"):
        for anatomy in ("chest", "knee"):
            for number in range(count):
                image = shape(int(anatomy == "knee"), 16, rng) * (0.6 if modality == "MR" else 1)
                if number % 2:
                    image[:5, :5] = 255
                name = f"{modality}_{anatomy}_{number}.png"
                save(folder / name, image)
                row = {
                    "path": name,
                    "modality": modality,
                    "anatomy": anatomy,
                    "label": ("clear", "corner")[number % 2],
                }
                rows.append(row | {"patient": f"{modality}{anatomy}{number // 2}"})
    path = folder / "table.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def videos(folder: Path, *, count: int = 48, seed: int = 0) -> tuple[Path, Path]:
    """
    Three classes told apart by image, text and audio together, with emotion; frames pooled, some
    audio missing.
    """
    rng = np.random.default_rng(seed)
    (folder / "features").mkdir(parents=True, exist_ok=True)
    centres = {
        key: rng.normal(0, 2, (3, length))
        for key, length in (("image", 6), ("text", 5), ("audio", 4), ("emotion", 10))
    }
    rows = []
    for number in range(count):
        label = number % 3
        held = {
            key: centre[label] + rng.normal(0, 1, centre.shape[1])
            for key, centre in centres.items()
        }
        held["image"] = np.stack([held["image"] - 1, held["image"] + 1])  # two frames
        if number % 10 == 9:
            del held["audio"]
        np.savez(folder / "features" / f"v{number:03d}.npz", **held)
        rows.append(
            {"video_id": f"v{number:03d}", "label": ("implicit", "explicit", "none")[label]}
        )
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)
    return folder / "features", folder / "labels.csv"


def faces(folder: Path, *, people: int = 6, seed: int = 0, fakes: int = 3) -> Path:
    """
    Smooth faces, and fakes with a square of another brightness; a table of path, label, group.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32]
    rows = []
    for person in range(people):
        face = (
            100 + 60 * np.exp(-(((x - 16) / 9) ** 2 + ((y - 16) / 12) ** 2)) + rng.uniform(-20, 20)
        )
        for number in range(6):
            image = np.repeat((face + rng.normal(0, 4, face.shape))[..., None], 3, axis=2)
            label = "fake" if number < fakes else "real"
            if label == "fake":
                image[10:22, 10:22] += 70
            name = f"{person}/{number}.png"
            save(folder / name, image)
            rows.append({"path": name, "label": label, "group": f"person {person}"})
    path = folder / "faces.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def film(
    path: Path,
    *,
    hue: int = 0,
    hertz: float | None = 300,
    frames: int = 12,
    codecs: tuple[str, str] = ("mpeg4", "aac"),
) -> Path:
    """
    Write a video of two seconds: frame k has the level 15 k + 50 in the channel ``hue``; a tone.
    """
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    rate = 48_000
    with av.open(str(path), "w") as container:
        picture = container.add_stream(codecs[0], rate=frames // 2)
        picture.width = picture.height = 32
        picture.pix_fmt = "yuv420p"
        sound = None if hertz is None else container.add_stream(codecs[1], rate=rate, layout="mono")
        for number in range(frames):
            image = np.full((32, 32, 3), 20, np.uint8)
            image[..., hue] = 15 * number + 50
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(picture.encode(frame))
        container.mux(picture.encode())
        if sound is not None:
            time = np.arange(2 * rate) / rate
            samples = (9000 * np.sin(2 * np.pi * hertz * time)).astype(np.int16)[None]
            block = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            block.sample_rate, block.pts = rate, 0
            container.mux(sound.encode(block))
            container.mux(sound.encode())
    return path
