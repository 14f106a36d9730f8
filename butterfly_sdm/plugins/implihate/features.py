"""Feature vectors of videos, by modality, from folders, stacked arrays and tables."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from butterfly_sdm.errors import DataError, MissingFileError
from butterfly_sdm.plugins import collection
from butterfly_sdm.plugins.images import read_arrays
from butterfly_sdm.plugins.implihate.media import FILMS, video_name

logger = logging.getLogger("butterfly_sdm.plugins")

APPLIED = "extractors"  # member of a feature file: what made it
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
    extractors
        What made the features, as far as it was noted: facts by the name of the extractor.
    """

    videos: tuple[str, ...]
    values: dict[str, np.ndarray]
    present: dict[str, np.ndarray]
    extractors: dict[str, Any] = field(default_factory=dict)

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
        lacking = [video for video in videos if video not in place]
        message = (
            "%d of %d labelled videos have no features, such as %s; they are kept with every "
            "modality missing."
        )
        if lacking:
            logger.warning(message, len(lacking), len(videos), lacking[0])
        # An unknown video has the place -1, that of a row of zeros put behind all others.
        values = {key: np.pad(value, ((0, 1), (0, 0)))[rows] for key, value in self.values.items()}
        present = {key: np.pad(value, (0, 1))[rows] for key, value in self.present.items()}
        return replace(self, videos=tuple(videos), values=values, present=present)

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
        n = len(self.videos)
        values, present = {}, {}
        for key, length in lengths.items():
            has = self.lengths.get(key, length)
            if has != length:
                raise DataError(
                    f"The {key} features have {has} numbers; the network was trained with "
                    f"{length}. Use the same feature extractor."
                )
            values[key] = self.values.get(key, np.zeros((n, length), np.float32))
            present[key] = self.present.get(key, np.zeros(n, bool))
        return replace(self, values=values, present=present)


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
    if not path.exists():
        raise MissingFileError(f"There are no features at {path}.")
    if path.is_dir():
        found = {file.stem: read_arrays(file) for file in sorted(path.glob("*.npz"))}
        return stack_features(found, path, _agreed(found))
    if path.suffix == ".npz":
        stacked = read_arrays(path)
        if "video_id" not in stacked:  # a single video
            return stack_features({path.stem: stacked}, path, read_applied(stacked))
        videos = stacked.pop("video_id")
        arrays = {key: stacked[key] for key in KEYS if key in stacked}
        for key, value in arrays.items():
            if len(value) != len(videos):
                message = f"{path} holds {len(videos)} videos, but {len(value)} rows of {key}."
                raise DataError(message)
    elif not collection.is_table(path):
        raise DataError(
            f"{path} is neither a film nor features of one, which are .npz, .csv or .parquet."
        )
    else:
        table = collection.read_columns(path, ("video_id",), {"video_id": str})
        videos = table["video_id"].to_numpy()
        of = {key: [n for n in table if str(n).rpartition("_")[0] == key] for key in KEYS}
        try:
            arrays = {key: table[names].to_numpy(np.float32) for key, names in of.items() if names}
        except ValueError as error:
            raise DataError(f"{path} has a feature that is no number: {error}.") from error
    by_video = {
        str(video): {key: value[row] for key, value in arrays.items()}
        for row, video in enumerate(videos)
    }
    return stack_features(by_video, path)


def _agreed(found: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Return what made the features of a folder; the same extractor for all videos."""
    agreed: dict[str, Any] = {}
    first: dict[str, str] = {}
    for video, held in found.items():
        for name, facts in read_applied(held).items():
            lead = f"The features of {first.setdefault(name, video)} and {video} were extracted"
            check_same(name, agreed.setdefault(name, facts), facts, lead)
    return agreed


def read_applied(held: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the facts of the extractors that made the arrays of a feature file, by name."""
    return dict(json.loads(str(held[APPLIED]))) if APPLIED in held else {}


def check_same(name: str, before: Any, now: Mapping[str, Any], lead: str) -> None:
    """
    Refuse an extractor that is not the one that made earlier features.

    Raises
    ------
    DataError
        Says in what they differ; begins with ``lead``.
    """
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if changed:
        told = ", ".join(f"{key} {before.get(key)}, not {now.get(key)}" for key in changed)
        raise DataError(
            f"{lead} by {name} with {told}. Use the same, or give features another folder and "
            "train again."
        )


def stack_features(
    rows: Mapping[str, Mapping[str, np.ndarray]],
    path: Path,
    extractors: Mapping[str, Any] | None = None,
) -> Features:
    """
    Put the arrays of videos into one table.

    Parameters
    ----------
    rows
        Video: arrays by key, vectors or frames (frames, length), which are averaged.
    path
        Where they come from, for messages.
    extractors
        What made them.

    Raises
    ------
    DataError
        There is none, or they differ in length.
    """
    values: dict[str, np.ndarray] = {}
    present = {key: np.zeros(len(rows), bool) for key in KEYS}
    for place, (video, row) in enumerate(rows.items()):
        for key, value in row.items():
            frames = np.atleast_1d(np.asarray(value))
            if key not in KEYS or not frames.size:
                continue  # an empty or unusable vector is a missing one
            frames = frames.reshape(-1, frames.shape[-1]).astype(np.float32)
            if not np.isfinite(frames).all():
                continue
            length = frames.shape[1]
            of_all = values.setdefault(key, np.zeros((len(rows), length), np.float32))
            if length != of_all.shape[1]:
                raise DataError(
                    f"The {key} features of {video} have {length} numbers, those before "
                    f"{of_all.shape[1]}."
                )
            of_all[place], present[key][place] = frames.mean(axis=0), True
    if not any(key in values for key in MODALITIES):
        raise DataError(f"{path} holds none of {', '.join(MODALITIES)}; at least one is needed.")
    values = {key: values[key] for key in KEYS if key in values}
    present = {key: present[key] for key in values}
    return Features(tuple(rows), values, present, dict(extractors or {}))


def read_labels(path: Path) -> pd.DataFrame:
    """
    Read the labels of videos.

    Parameters
    ----------
    path
        A table of ``video_id`` (or ``path``, or a file's name as ``video_id``), ``label`` and
        optionally ``split`` and ``group``; the root of HateMM, with an annotation table of
        ``video_file_name`` and ``label``; or a folder whose folders are labels and hold the videos,
        as HateMM's ``hate_videos`` and ``non_hate_videos``.

    Raises
    ------
    MissingFileError, DataError
        There are no labels, or a column is missing, or a video stands twice.
    """
    annotations = sorted(path.glob("*annotation*.csv"))
    if path.is_dir() and not annotations:
        table = collection.read_collection(path, ("label",), endings=FILMS)
        table["label"] = table["label"].str.removesuffix("_videos")
        table = table.rename(columns={"path": "video_id"})
    elif annotations:
        table = collection.read_columns(annotations[0], ("video_file_name", "label"))
        label = table["label"].str.strip().str.lower().str.replace(r"[ -]", "_", regex=True)
        table = pd.DataFrame({"video_id": table["video_file_name"], "label": label})
    else:
        table = collection.read_columns(path, ("label",))
        if "path" in table.columns and "video_id" not in table.columns:
            table = table.assign(video_id=[Path(str(name)).stem for name in table["path"]])
        collection.check_columns(table, ("video_id",), path)
    table["video_id"] = [video_name(name) for name in table["video_id"]]
    if twice := collection.first_twice(table["video_id"]):
        raise DataError(f"{path} labels the video {twice} twice.")
    without = table["video_id"][table["label"].isna()]
    if len(without):
        raise DataError(f"{path} has no label for the video {without.iloc[0]}.")
    return table.reset_index(drop=True)
