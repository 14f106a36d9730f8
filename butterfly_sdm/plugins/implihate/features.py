"""Feature vectors of videos, by modality, from folders, stacked arrays and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from butterfly_sdm.errors import DataError, MissingFileError
from butterfly_sdm.plugins.collection import read_columns
from butterfly_sdm.plugins.images import read_arrays

MODALITIES = ("image", "text", "audio")
KEYS = (*MODALITIES, "caption", "emotion", "sentiment")


@dataclass(frozen=True)
class Features:
    """
    One row per video.

    Attributes
    ----------
    videos
        (n,) video ids.
    values
        Modality: (n, length) float32, zeros where missing.
    present
        Modality: (n,) whether the video has it.
    """

    videos: tuple[str, ...]
    values: dict[str, np.ndarray]
    present: dict[str, np.ndarray]

    @property
    def lengths(self) -> dict[str, int]:
        """Length of the vectors of every modality."""
        return {key: value.shape[1] for key, value in self.values.items()}

    def of(self, videos: Sequence[str]) -> Features:
        """
        Return the rows of ``videos``, in that order; a video without features has no modality.

        Raises
        ------
        DataError
            None of the videos has features.
        """
        place = {video: row for row, video in enumerate(self.videos)}
        rows = np.array([place.get(video, -1) for video in videos])
        if (rows < 0).all():
            raise DataError(
                f"None of the {len(videos)} labelled videos has features, such as {videos[0]}. "
                "Compare the names."
            )
        # An unknown video has the place -1, that of a row of zeros put behind all others.
        values = {key: np.pad(value, ((0, 1), (0, 0)))[rows] for key, value in self.values.items()}
        present = {key: np.pad(value, (0, 1))[rows] for key, value in self.present.items()}
        return Features(tuple(videos), values, present)

    def batch(
        self, rows: np.ndarray, without: str | None = None, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Return ``KEY`` (m, length) and ``KEY_present`` (m,), 0 for all ``without``, of m rows."""
        batch = {}
        for key, values in self.values.items():
            present = self.present[key][rows].astype(np.float32) * (key != without)
            batch[key] = torch.from_numpy(values[rows]).to(device)
            batch[f"{key}_present"] = torch.from_numpy(present).to(device)
        return batch

    def shaped(self, lengths: Mapping[str, int]) -> Features:
        """
        Return exactly the modalities a network was trained with; those that are absent are missing
        for all.

        Raises
        ------
        DataError
            A vector has another length.
        """
        for key, length in lengths.items():
            has = self.lengths.get(key, length)
            if has != length:
                raise DataError(
                    f"The {key} features have {has} numbers; the network was trained with "
                    f"{length}. Use the same feature extractor."
                )
        n = len(self.videos)
        values = {
            key: self.values.get(key, np.zeros((n, length), np.float32))
            for key, length in lengths.items()
        }
        present = {key: self.present.get(key, np.zeros(n, bool)) for key in lengths}
        return Features(self.videos, values, present)


def read_features(path: Path) -> Features:
    """
    Read features.

    Parameters
    ----------
    path
        A folder with one ``VIDEO.npz`` per video (vectors, or arrays of frames that are averaged);
        one ``.npz`` with ``video_id`` and stacked arrays; or a CSV or Parquet table with
        ``video_id`` and columns such as ``text_0``, ``text_1``.

    Raises
    ------
    MissingFileError, DataError
        There are no features, or they do not fit together.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"There are no features at {path}.")
    if path.is_dir():
        return _stack({file.stem: _load(file) for file in sorted(path.glob("*.npz"))}, path)
    if path.suffix == ".npz":
        stacked = _load(path)
        if "video_id" not in stacked:  # a single video
            return _stack({path.stem: stacked}, path)
        videos = [str(video) for video in stacked.pop("video_id")]
        wrong = [key for key, value in stacked.items() if len(value) != len(videos)]
        if wrong:
            raise DataError(
                f"{path} holds {len(videos)} videos, but {len(stacked[wrong[0]])} rows of "
                f"{wrong[0]}."
            )
        return _stack(_by_video(videos, stacked), path)
    table = read_columns(path, ("video_id",), {"video_id": str})
    columns = {
        key: [name for name in table.columns if str(name).rpartition("_")[0] == key] for key in KEYS
    }
    arrays = {key: table[names].to_numpy(np.float32) for key, names in columns.items() if names}
    return _stack(_by_video(table["video_id"].astype(str).tolist(), arrays), path)


def _by_video(
    videos: Sequence[str], arrays: Mapping[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    return {
        video: {key: value[row] for key, value in arrays.items()}
        for row, video in enumerate(videos)
    }


def _load(path: Path) -> dict[str, np.ndarray]:
    known = (*KEYS, "video_id")
    return {name: value for name, value in read_arrays(path).items() if name in known}


def _stack(rows: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> Features:
    lengths: dict[str, int] = {}
    pooled: dict[str, dict[str, np.ndarray]] = {}
    for video, row in rows.items():
        pooled[video] = {}
        for key, value in row.items():
            frames = np.atleast_1d(np.asarray(value, dtype=np.float32))
            if not frames.size or not np.isfinite(frames).all():
                continue  # an empty or unusable vector is a missing one
            vector = frames.reshape(-1, frames.shape[-1]).mean(axis=0)
            if lengths.setdefault(key, len(vector)) != len(vector):
                raise DataError(
                    f"The {key} features of {video} have {len(vector)} numbers, those before "
                    f"{lengths[key]}."
                )
            pooled[video][key] = vector
    if not any(key in lengths for key in MODALITIES):
        raise DataError(f"{path} holds none of {', '.join(MODALITIES)}; at least one is needed.")
    videos = tuple(pooled)
    ordered = [key for key in KEYS if key in lengths]
    values = {
        key: np.stack([pooled[v].get(key, np.zeros(lengths[key], np.float32)) for v in videos])
        for key in ordered
    }
    present = {key: np.array([key in pooled[video] for video in videos]) for key in ordered}
    return Features(videos, values, present)


def read_labels(path: Path) -> pd.DataFrame:
    """
    Read ``labels.csv`` with ``video_id``, ``label`` and optionally ``split``, or the root of
    HateMM.

    HateMM's root holds the folders ``hate_videos`` and ``non_hate_videos`` and an annotation table
    with ``video_file_name`` and ``label``; the annotation gives the label, or without it the
    folder.

    Raises
    ------
    MissingFileError, DataError
        There are no labels, or a column is missing, or a video stands twice.
    """
    path = Path(path)
    table = _hatemm(path) if path.is_dir() else read_columns(path, ("video_id", "label"))
    twice = table["video_id"][table["video_id"].duplicated()]
    if len(twice):
        raise DataError(f"{path} labels the video {twice.iloc[0]} twice.")
    without = table["video_id"][table["label"].isna()]
    if len(without):
        raise DataError(f"{path} has no label for the video {without.iloc[0]}.")
    return table.reset_index(drop=True)


def _hatemm(root: Path) -> pd.DataFrame:
    annotations = sorted(root.glob("*annotation*.csv"))
    if annotations:
        table = read_columns(annotations[0], ("video_file_name", "label"))
        label = table["label"].str.strip().str.lower().str.replace(r"[ -]", "_", regex=True)
        videos = [Path(name).stem for name in table["video_file_name"]]
        return pd.DataFrame({"video_id": videos, "label": label})
    folders = {"hate": root / "hate_videos", "non_hate": root / "non_hate_videos"}
    if not all(folder.is_dir() for folder in folders.values()):
        raise MissingFileError(
            f"{root} holds neither an annotation table nor hate_videos and non_hate_videos."
        )
    files = [
        (file.stem, name) for name, folder in folders.items() for file in sorted(folder.iterdir())
    ]
    return pd.DataFrame(files, columns=["video_id", "label"])
