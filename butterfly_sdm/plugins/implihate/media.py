"""The files of a video: which belong together, and their frames, sound and words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from butterfly_sdm.errors import DataError, MissingFileError
from butterfly_sdm.plugins import collection
from butterfly_sdm.plugins.images import SUFFIXES, optional_package

FILMS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv")
SOUNDS = (".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".opus")
WORDS = (".txt", ".srt", ".vtt")
FRAMES = "/"  # stands for the ending of a folder of frames
MEDIA = (*FILMS, *SOUNDS, *WORDS)


@dataclass(frozen=True)
class Video:
    """
    One video.

    Attributes
    ----------
    name
        Its id.
    files
        Ending (``/`` of a folder of frames): file.
    words
        What is said in it, where a table says so.
    """

    name: str
    files: dict[str, Path]
    words: str | None = None

    def first(self, suffixes: tuple[str, ...]) -> Path | str | None:
        """Return the file of the first of ``suffixes`` it has, or its words if text is asked."""
        if self.words is not None and ".txt" in suffixes:
            return self.words
        return next((self.files[suffix] for suffix in suffixes if suffix in self.files), None)


def is_media(place: Path) -> bool:
    """Tell whether ``place`` names videos, and not features of videos."""
    if place.is_dir():
        return not any(place.glob("*.npz"))
    if collection.is_table(place):
        return "path" in collection.read_columns(place, ()).columns
    return place.suffix.lower() in MEDIA


def find_videos(place: Path) -> list[Video]:
    """
    List videos by name.

    Parameters
    ----------
    place
        A folder: every file and folder of frames below it belongs to the video it is named after
        (``v1.mp4``, ``v1.wav``, ``v1.txt``, ``v1/``). A single file: that video, with what lies
        beside it under its name. A CSV or Parquet table: one video per ``path``, named
        ``video_id`` or as its file, with what is said in it in ``transcript``, where there is such
        a column.

    Raises
    ------
    MissingFileError, DataError
        There is none, or two have one name.
    """
    if collection.is_table(place):
        table = collection.read_collection(place)
        names = table.get("video_id", pd.Series([Path(path).stem for path in table["path"]]))
        words = table.get("transcript", pd.Series([None] * len(table)))
        rows = zip(map(video_name, names), table["path"], words, strict=True)
        videos = [Video(n, _beside(Path(p)), None if pd.isna(w) else str(w)) for n, p, w in rows]
        if twice := collection.first_twice([video.name for video in videos]):
            raise DataError(f"{place} names the video {twice} twice.")
        return videos
    if place.is_file():
        return [Video(place.stem, _beside(place))]
    if not place.is_dir():
        raise MissingFileError(f"There are no videos at {place}.")
    found: dict[str, dict[str, Path]] = {}
    for path in collection.files_below(place, (*MEDIA, *SUFFIXES)):
        if path.suffix.lower() in SUFFIXES:  # a frame
            if path.parent == place:
                continue
            path = path.parent
        ending = FRAMES if path.is_dir() else path.suffix.lower()
        name = path.name if path.is_dir() else path.stem
        earlier = found.setdefault(name, {}).setdefault(ending, path)
        if earlier != path:
            raise DataError(f"{earlier} and {path} are both called {name}. Rename one.")
    if not found:
        raise DataError(f"{place} holds no video; known endings are {', '.join(MEDIA)}.")
    return [Video(name, files) for name, files in sorted(found.items())]


def video_name(value: object) -> str:
    """Return the id of a video, of which the name of its file may be given."""
    name = Path(str(value)).name
    return Path(name).stem if Path(name).suffix.lower() in MEDIA else str(value)


def _beside(path: Path) -> dict[str, Path]:
    if not path.exists():
        raise MissingFileError(f"There is no video {path}. Paths are relative to the table.")
    near = (path.parent / f"{path.stem}{ending}" for ending in MEDIA)
    files = {other.suffix.lower(): other for other in near if other.is_file()}
    return files | {FRAMES if path.is_dir() else path.suffix.lower(): path}


def read_words(source: Path | str) -> str:
    """
    Return what is said: a text as it is, of a file its text, of subtitles without times.

    Raises
    ------
    DataError
        The file is no UTF-8 text.
    """
    if isinstance(source, str):
        return source
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{source} is no UTF-8 text: {error}") from error
    if source.suffix.lower() == ".txt":
        return text
    lines = text.removeprefix("WEBVTT").splitlines()
    spoken = [line for line in lines if "-->" not in line and not line.strip().isdecimal()]
    return re.sub(r"<[^>]*>", "", "\n".join(spoken)).strip()


def read_frames(path: Path, count: int) -> list[Any]:
    """
    Return up to ``count`` frames of a film, evenly spread over its time, as images of Pillow.

    Raises
    ------
    MissingPackageError
        PyAV is not installed.
    DataError
        The file cannot be decoded.
    """
    with _opened(path) as container:
        if not container.streams.video:
            return []
        stream = container.streams.video[0]
        # Times of the packets, which every container has; lengths in headers may be missing.
        times = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
        places = sorted({int((number + 0.5) / count * len(times)) for number in range(count)})
        frames = []
        for time in [times[place] for place in places if place < len(times)]:
            container.seek(time, stream=stream)
            following = (f for f in container.decode(stream) if f.pts is not None and f.pts >= time)
            frame = next(following, None)
            if frame is not None:
                frames.append(frame.to_image().rotate(frame.rotation, expand=True))
        return frames


def read_sound(path: Path, rate: int | None) -> tuple[int, np.ndarray]:
    """
    Return the sound of a file: samples a second, and (samples,) float64, the mean of its channels.

    Parameters
    ----------
    path
        A WAV file, or any film or sound that PyAV decodes.
    rate
        Samples a second; None: those of the file.

    Raises
    ------
    MissingPackageError
        PyAV is not installed.
    DataError
        The file cannot be decoded.
    """
    if path.suffix.lower() == ".wav":
        return _read_wav(path, rate)
    with _opened(path) as container:
        if not container.streams.audio:
            return rate or 1, np.zeros(0)
        stream = container.streams.audio[0]
        rate = rate or stream.rate
        resampler = _av(path).AudioResampler(format="dbl", layout="mono", rate=rate)
        blocks = [part for f in container.decode(stream) for part in resampler.resample(f)]
        samples = [block.to_ndarray()[0] for block in (*blocks, *resampler.resample(None))]
        return rate, np.concatenate(samples) if samples else np.zeros(0)


def _read_wav(path: Path, rate: int | None) -> tuple[int, np.ndarray]:
    from scipy.io import wavfile
    from scipy.signal import resample_poly

    try:
        own, samples = wavfile.read(path)
    except (ValueError, OSError) as error:
        raise DataError(f"{path} is no readable WAV file: {error}") from error
    samples = np.asarray(samples, dtype=np.float64)
    samples = samples.mean(axis=1) if samples.ndim == 2 else samples
    if rate is None or rate == own:
        return own, samples
    return rate, np.asarray(resample_poly(samples, rate, own))


def _av(path: Path) -> Any:
    return optional_package("av", f"{path} is read by PyAV, which is not installed", "video")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    av = _av(path)
    try:
        with av.open(str(path)) as container:
            yield container
    except (av.FFmpegError, ValueError) as error:
        raise DataError(f"{path} cannot be decoded ({error}). Is it a whole video?") from error
