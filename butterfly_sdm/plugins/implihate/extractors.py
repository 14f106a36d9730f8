"""Turn the media of a video - transcript, sound, frames - into feature vectors."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from butterfly_sdm.core.files import atomic_path
from butterfly_sdm.errors import ConfigError, DataError, MissingPackageError, how_to_install
from butterfly_sdm.plugins.collection import existing_folder, find_images
from butterfly_sdm.plugins.images import Images
from butterfly_sdm.plugins.networks import TrunkAndHead, device_of, make_trunk, over_images


class Extractor(Protocol):
    """Reads one file of a video; anything with this method can be passed to :func:`extract_all`."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Endings of the files it reads; ``/`` stands for a folder."""

    def extract(self, path: Path) -> Mapping[str, np.ndarray]:
        """Return features by key: image, text, audio, caption, emotion or sentiment."""


class Sentiment:
    """Shares of positive, negative and neutral words of a transcript, by VADER."""

    suffixes = (".txt",)

    def __init__(self) -> None:
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ImportError as error:
            raise MissingPackageError(
                f"Sentiment needs vaderSentiment: {how_to_install('video')}"
            ) from error
        self._analyser = SentimentIntensityAnalyzer()

    def extract(self, path: Path) -> dict[str, np.ndarray]:
        """Return ``sentiment``: positive, negative, neutral."""
        scores = self._analyser.polarity_scores(_text(path))
        return {"sentiment": np.array([scores["pos"], scores["neg"], scores["neu"]], np.float32)}


_EMOTIONS = "fear anger anticipation trust surprise positive negative sadness disgust joy"


class Emotion:
    """Counts of words of a transcript per emotion of the NRC lexicon."""

    suffixes = (".txt",)
    names = tuple(_EMOTIONS.split())

    def __init__(self) -> None:
        try:
            from nrclex import NRCLex
        except ImportError as error:
            raise MissingPackageError(f"Emotions need nrclex: {how_to_install('video')}") from error
        self._lexicon = NRCLex()

    def extract(self, path: Path) -> dict[str, np.ndarray]:
        """Return ``emotion``: ten counts in the order of ``names``."""
        self._lexicon.load_token_list(re.findall(r"[a-z']+", _text(path).lower()))
        counts = self._lexicon.raw_emotion_scores
        values = [counts.get(name, 0) for name in self.names]
        return {"emotion": np.array(values, np.float32)}


class HashedText:
    """
    Words and word pairs of a transcript hashed into a vector: no model needed, weaker than one.
    """

    suffixes = (".txt",)

    def __init__(self, length: int = 1024) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer

        self._vectorizer = HashingVectorizer(
            n_features=length, ngram_range=(1, 2), alternate_sign=False, stop_words="english"
        )

    def extract(self, path: Path) -> dict[str, np.ndarray]:
        """Return ``text``."""
        return {"text": self._vectorizer.transform([_text(path)]).toarray()[0].astype(np.float32)}


class LogMel:
    """
    Log-mel spectrum of the sound, averaged over equal stretches of time, with its spread.

    Parameters
    ----------
    mels
        Bands.
    stretches
        The sound is cut into so many parts of equal length.
    """

    suffixes = (".wav",)

    def __init__(self, mels: int = 32, stretches: int = 8) -> None:
        self.mels = mels
        self.stretches = stretches

    def extract(self, path: Path) -> dict[str, np.ndarray]:
        """
        Return ``audio`` of length mels * (stretches + 1).

        Raises
        ------
        DataError
            The file is no readable WAV, or shorter than 0.05 s.
        """
        from scipy.io import wavfile
        from scipy.signal import stft

        try:
            rate, samples = wavfile.read(path)
        except (ValueError, OSError) as error:
            raise DataError(f"{path} is no readable WAV file: {error}") from error
        samples = np.asarray(samples, dtype=np.float64)
        samples = samples.mean(axis=1) if samples.ndim == 2 else samples
        window = max(16, int(0.025 * rate))
        # Twice the window at least, so that no low band falls between two frequencies.
        nfft = int(2 ** (np.ceil(np.log2(window)) + 1))
        if len(samples) < window * 2:
            raise DataError(
                f"{path} lasts {len(samples) / rate:.3f} s; at least 0.05 s of sound are needed."
            )
        samples = samples / (np.abs(samples).max() or 1.0)
        overlap = window - int(0.01 * rate)
        _, _, spectrum = stft(samples, rate, nperseg=window, noverlap=overlap, nfft=nfft)
        power = mel_filters(rate, nfft, self.mels) @ np.abs(spectrum) ** 2
        energy = np.log(power + 1e-8)  # (mels, frames)
        energy = energy - energy.mean()
        stretches = np.array_split(energy, self.stretches, axis=1)
        parts = [part.mean(axis=1) for part in stretches if part.size]
        parts += [parts[-1]] * (self.stretches - len(parts))
        return {"audio": np.concatenate([*parts, energy.std(axis=1)]).astype(np.float32)}


class Frames:
    """
    Mean feature of the frames of a video by a trunk of timm.

    Parameters
    ----------
    trunk
        A model of timm.
    weights
        ``pretrained`` (fetched by timm) or a local file.
    size_px
        Side the frames are resized to.
    """

    suffixes = ("/",)  # a folder of frames

    def __init__(
        self, trunk: str = "vit_base_patch16_224", weights: str = "pretrained", size_px: int = 224
    ) -> None:
        self.size_px = size_px
        network = make_trunk(trunk, 3, size_px=size_px, weights=weights)
        self._model = TrunkAndHead(network, 1, published=weights == "pretrained").eval()

    def extract(self, path: Path) -> dict[str, np.ndarray]:
        """Return ``image`` of the frames in the folder ``path``."""
        images = Images(find_images(path), self.size_px, 3)
        device = device_of(self._model)
        features = over_images(self._model.features, images, images.rows, device)
        return {"image": features.mean(dim=0).numpy()}


EXTRACTORS: dict[str, Callable[[], Extractor]] = {
    "sentiment": Sentiment,
    "emotion": Emotion,
    "hashed_text": HashedText,
    "log_mel": LogMel,
    "frames": Frames,
}


def make_extractors(names: Sequence[str]) -> list[Extractor]:
    """
    Make extractors by name.

    Raises
    ------
    ConfigError
        A name is unknown.
    ModelError, MissingPackageError
        An extractor lacks its weights or its package.
    """
    unknown = [name for name in names if name not in EXTRACTORS]
    if unknown:
        raise ConfigError(f"extract names {unknown[0]!r}; known are {', '.join(EXTRACTORS)}.")
    return [EXTRACTORS[name]() for name in names]


def extract_all(media: Path, folder: Path, extractors: Sequence[Extractor]) -> int:
    """
    Extract the features of every video below ``media`` that has none yet.

    Parameters
    ----------
    media
        Files named by video: ``VIDEO.txt``, ``VIDEO.wav``, and a folder ``VIDEO/`` of frames;
        anywhere below.
    folder
        Receives ``VIDEO.npz``.
    extractors
        Applied to the files whose endings they name.

    Returns
    -------
    int
        Number of videos extracted now.

    Raises
    ------
    MissingFileError
        There is no such folder.
    """
    work: dict[str, list[tuple[Extractor, Path]]] = {}
    for path in sorted(existing_folder(media).rglob("*")):
        suffix = "/" if path.is_dir() else path.suffix.lower()
        for extractor in extractors:
            if suffix in extractor.suffixes:
                work.setdefault(path.stem, []).append((extractor, path))
    todo = [video for video in work if not (folder / f"{video}.npz").is_file()]
    for video in todo:
        found: dict[str, np.ndarray] = {}
        for extractor, path in work[video]:
            found |= extractor.extract(path)
        with atomic_path(folder / f"{video}.npz") as temporary:
            np.savez(temporary, **found)  # type: ignore[arg-type]
    return len(todo)


def mel_filters(rate: int, length: int, mels: int) -> np.ndarray:
    """
    Return (mels, length // 2 + 1) triangular filters equally spaced on the mel scale 2595 log10(1 +
    f / 700).
    """
    frequency = np.linspace(0, rate / 2, length // 2 + 1)
    top = 2595 * np.log10(1 + rate / 2 / 700)
    corner = 700 * (10 ** (np.linspace(0, top, mels + 2) / 2595) - 1)
    rising = (frequency - corner[:-2, None]) / (corner[1:-1] - corner[:-2])[:, None]
    falling = (corner[2:, None] - frequency) / (corner[2:] - corner[1:-1])[:, None]
    return np.clip(np.minimum(rising, falling), 0, None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} is no UTF-8 text: {error}") from error
