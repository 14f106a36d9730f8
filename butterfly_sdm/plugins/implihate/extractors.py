"""Turn the media of videos - what is said, sound, frames - into feature vectors."""

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from butterfly_sdm.core.files import atomic_path
from butterfly_sdm.errors import ConfigError, DataError, ModelError
from butterfly_sdm.plugins import networks
from butterfly_sdm.plugins.collection import find_images
from butterfly_sdm.plugins.images import (
    Images,
    check_some_readable,
    fit_image,
    optional_package,
    read_arrays,
)
from butterfly_sdm.plugins.implihate import media
from butterfly_sdm.plugins.implihate.features import APPLIED, check_same, read_applied
from butterfly_sdm.plugins.implihate.options import FrameOptions, ImplihateConfig
from butterfly_sdm.plugins.stages import device_of_config
from butterfly_sdm.progress import Progress, silent

logger = logging.getLogger("butterfly_sdm.plugins")

_SOUNDS = (*media.SOUNDS, *media.FILMS)  # a sound file first: it was cut out for this
_RATE = 16_000
Device = torch.device | str
_WINDOW_S = 10  # of an encoder of sound: what such networks were trained on


class Extractor(Protocol):
    """
    Reads one file of a video; anything with these can be passed to :func:`extract_all`.

    Attributes
    ----------
    keys
        What it makes: image, text, audio, caption, emotion or sentiment.
    suffixes
        Of the files it reads, the best first; ``/`` stands for a folder of frames.
    facts
        What its result depends on: two with the same facts give the same features.
    """

    @property
    def keys(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def suffixes(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def facts(self) -> Mapping[str, Any]: ...  # noqa: D102

    def extract(self, source: Path | str) -> Mapping[str, np.ndarray]:
        """Return vectors by key, of a file or of what is said; none: it holds nothing of it."""


class Sentiment:
    """Shares of positive, negative and neutral words of a transcript, by VADER."""

    keys, suffixes = ("sentiment",), media.WORDS
    facts: Mapping[str, Any] = {}

    def __init__(self) -> None:
        vader = "vaderSentiment.vaderSentiment"
        module = optional_package(vader, "Sentiment needs vaderSentiment", "video")
        self._analyser = module.SentimentIntensityAnalyzer()

    def extract(self, source: Path | str) -> dict[str, np.ndarray]:
        """Return ``sentiment``: positive, negative, neutral."""
        scores = self._analyser.polarity_scores(media.read_words(source))
        return {"sentiment": np.array([scores["pos"], scores["neg"], scores["neu"]], np.float32)}


_EMOTIONS = "fear anger anticipation trust surprise positive negative sadness disgust joy".split()


class Emotion:
    """Counts of words of a transcript per emotion of the NRC lexicon."""

    keys, suffixes = ("emotion",), media.WORDS
    facts: Mapping[str, Any] = {}
    names = _EMOTIONS

    def __init__(self) -> None:
        self._lexicon = optional_package("nrclex", "Emotions need nrclex", "video").NRCLex()

    def extract(self, source: Path | str) -> dict[str, np.ndarray]:
        """Return ``emotion``: ten counts in the order of ``names``."""
        self._lexicon.load_token_list(re.findall(r"[a-z']+", media.read_words(source).lower()))
        counts = self._lexicon.raw_emotion_scores
        values = [counts.get(name, 0) for name in self.names]
        return {"emotion": np.array(values, np.float32)}


class HashedText:
    """
    Words and word pairs of a transcript hashed into a vector: no model needed, weaker than one.
    """

    keys, suffixes = ("text",), media.WORDS

    def __init__(self, length: int = 1024) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer

        self.facts = {"length": length}
        self._vectorizer = HashingVectorizer(
            n_features=length, ngram_range=(1, 2), alternate_sign=False, stop_words="english"
        )

    def extract(self, source: Path | str) -> dict[str, np.ndarray]:
        """Return ``text``."""
        hashed = self._vectorizer.transform([media.read_words(source)])
        return {"text": np.asarray(hashed.toarray()[0], np.float32)}


class LogMel:
    """
    Log-mel spectrum of the sound, averaged over equal stretches of time, with its spread.

    Parameters
    ----------
    mels
        Bands.
    stretches
        The sound is cut into so many parts of equal length.
    rate
        Samples a second, on which the bands depend; None: those of each file.
    """

    keys, suffixes = ("audio",), _SOUNDS

    def __init__(self, mels: int = 32, stretches: int = 8, rate: int | None = None) -> None:
        self.mels, self.stretches, self.rate = mels, stretches, rate
        self.facts = {"mels": mels, "stretches": stretches, "rate": rate}

    def extract(self, source: Path | str) -> dict[str, np.ndarray]:
        """
        Return ``audio`` of length mels * (stretches + 1); nothing of a film without sound.

        Raises
        ------
        DataError
            The file cannot be read, or is shorter than 0.05 s.
        """
        from scipy.signal import stft

        rate, samples = media.read_sound(Path(source), self.rate)
        if not len(samples):
            return {}
        window = max(16, int(0.025 * rate))
        # Twice the window at least, so that no low band falls between two frequencies.
        nfft = int(2 ** (np.ceil(np.log2(window)) + 1))
        if len(samples) < window * 2:
            raise DataError(
                f"{source} lasts {len(samples) / rate:.3f} s; at least 0.05 s of sound are needed."
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
    Mean feature of frames by a trunk of timm: of a film evenly spread ones, of a folder all.

    Parameters
    ----------
    options
        The trunk, its weights, and how many frames of a film it sees.
    device
        Where the trunk runs.
    """

    keys, suffixes = ("image",), (media.FRAMES, *media.FILMS)

    def __init__(self, options: FrameOptions, device: Device = "cpu") -> None:
        trunk = networks.make_trunk(options.trunk, 3, options.size_px, weights=options.weights)
        self.count, self.size_px = options.count, options.size_px
        self.facts = options.model_dump(include={"trunk", "size_px", "count"})
        self.facts["weights"] = networks.checksum(trunk.state_dict())
        # Weights that stay as they are want images scaled as where they were trained.
        self._model = networks.TrunkAndHead(trunk, 1, published=True).eval().to(device)

    def extract(self, source: Path | str) -> dict[str, np.ndarray]:
        """Return ``image``; nothing of a film without a picture."""
        path = Path(source)
        if path.is_dir():
            images = Images(find_images(path), self.size_px, 3)
        else:
            frames = media.read_frames(path, self.count)
            if not frames:
                return {}
            fitted = [fit_image(frame, self.size_px, 3) for frame in frames]
            images = Images(np.stack(fitted), self.size_px, 3)
        device = networks.device_of(self._model)
        features = networks.over_images(self._model.features, images, images.rows, device)
        return {"image": features.mean(dim=0).numpy()}


class _Encoder:
    """A network that Transformers knows, from a folder with its settings and safetensors."""

    setting: ClassVar[str]  # that names the folder
    preparation: ClassVar[str]  # class of Transformers that makes the inputs

    def __init__(self, folder: Path | None, device: Device = "cpu") -> None:
        need = f"{self.setting} needs transformers"
        transformers = optional_package("transformers", need, "encoders")
        if folder is None or not (folder / "config.json").is_file():
            has = "none is given" if folder is None else f"{folder} has none"
            raise ModelError(
                f"{self.setting} needs a folder with config.json and model.safetensors of a "
                f"network of Transformers; {has}."
            )
        given = {"local_files_only": True, "trust_remote_code": False}
        try:
            preparation = getattr(transformers, self.preparation)
            self._prepare: Any = preparation.from_pretrained(folder, **given)
            given["use_safetensors"] = True
            network = transformers.AutoModel.from_pretrained(folder, **given)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(
                f"{folder} holds no network that {self.setting} can use: "
                f"{str(error).splitlines()[0]}"
            ) from error
        encoder = network.get_encoder() if network.config.is_encoder_decoder else network
        weights = networks.checksum(encoder.state_dict())
        self.facts = {"kind": network.config.model_type, "weights": weights}
        self._network: Any = encoder.eval().to(device)
        self._device = device

    def _states(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return (windows, steps, length)."""
        with torch.no_grad():
            given = {name: value.to(self._device) for name, value in inputs.items()}
            states: Tensor = self._network(**given).last_hidden_state
        return states.float().cpu()


class TextEncoder(_Encoder):
    """Mean state of the words of a transcript in a language model, such as BERT."""

    keys, suffixes = ("text",), media.WORDS
    setting, preparation = "text_encoder", "AutoTokenizer"

    def extract(self, source: Path | str) -> dict[str, np.ndarray]:
        """Return ``text``; a long one is read window by window."""
        longest = min(self._prepare.model_max_length, 512)
        options = {"truncation": True, "max_length": longest, "return_overflowing_tokens": True}
        options |= {"padding": True, "return_tensors": "pt", "stride": 0}
        tokens = self._prepare([media.read_words(source)], **options)
        tokens.pop("overflow_to_sample_mapping", None)
        states, seen = self._states(tokens), tokens["attention_mask"].bool()
        return {"text": states[seen].mean(dim=0).numpy()} if seen.any() else {}


class SoundEncoder(_Encoder):
    """Mean state of the sound in a network of sound, such as wav2vec 2.0 or AST."""

    keys, suffixes = ("audio",), _SOUNDS
    setting, preparation = "sound_encoder", "AutoFeatureExtractor"

    def extract(self, source: Path | str) -> dict[str, np.ndarray]:
        """Return ``audio``, a mean over windows of ten seconds; nothing of a film without sound."""
        rate, samples = media.read_sound(Path(source), self._prepare.sampling_rate)
        if len(samples) < rate // 20:
            return {}
        means = []
        for window in np.array_split(samples, max(1, round(len(samples) / (rate * _WINDOW_S)))):
            inputs = self._prepare(window, sampling_rate=rate, return_tensors="pt")
            means.append(self._states(inputs).mean(dim=(0, 1)).numpy())
        return {"audio": np.asarray(np.mean(means, axis=0), np.float32)}


EXTRACTORS: dict[str, Callable[[ImplihateConfig], Extractor]] = {
    "sentiment": lambda config: Sentiment(),
    "emotion": lambda config: Emotion(),
    "hashed_text": lambda config: HashedText(),
    "text_encoder": lambda config: TextEncoder(config.text_encoder, device_of_config(config)),
    "log_mel": lambda config: LogMel(rate=_RATE),
    "sound_encoder": lambda config: SoundEncoder(config.sound_encoder, device_of_config(config)),
    "frames": lambda config: Frames(config.frames, device_of_config(config)),
}


def make_extractors(names: Sequence[str], config: ImplihateConfig) -> dict[str, Extractor]:
    """
    Make extractors by name.

    Raises
    ------
    ConfigError
        A name is unknown, or two make the same feature.
    ModelError, MissingPackageError
        An extractor lacks its weights or its package.
    """
    unknown = [name for name in names if name not in EXTRACTORS]
    if unknown:
        raise ConfigError(f"extract names {unknown[0]!r}; known are {', '.join(EXTRACTORS)}.")
    made: dict[str, Extractor] = {}
    for name in dict.fromkeys(names):
        extractor = EXTRACTORS[name](config)
        keys = set(extractor.keys)
        if rival := next((other for other in made if keys & set(made[other].keys)), None):
            kind = extractor.keys[0]
            raise ConfigError(f"{rival} and {name} both make {kind} features; name one.")
        made[name] = extractor
    return made


def extract(
    video: media.Video, extractors: Mapping[str, Extractor]
) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, str]]:
    """
    Extract the features of one video.

    Returns
    -------
    found, applied, failed
        Vectors by key; the facts of the extractors that had a file to read; why one could not, by
        its name.
    """
    found: dict[str, np.ndarray] = {}
    applied, failed = {}, {}
    for name, extractor in extractors.items():
        source = video.first(extractor.suffixes)
        if source is None:
            continue
        try:
            found |= extractor.extract(source)
        except DataError as error:
            failed[name] = str(error)
        else:
            applied[name] = dict(extractor.facts)
    return found, applied, failed


def extract_all(
    videos: Sequence[media.Video],
    folder: Path,
    extractors: Mapping[str, Extractor],
    progress: Progress = silent,
) -> dict[str, int]:
    """
    Extract into ``folder`` what is not there yet: of new videos everything, of others what new
    extractors make. Features that came from elsewhere stay as they are.

    Parameters
    ----------
    videos
        Their media.
    folder
        Receives ``VIDEO.npz``.
    extractors
        By name, each applied to the first file of a kind it reads.

    Returns
    -------
    dict
        Videos ``found``, ``extracted`` now, and ``unreadable`` at least in part, which the log
        names; they are tried again next time.

    Raises
    ------
    DataError
        The folder holds features of the same extractor with other settings or weights, or no video
        can be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count, extracted = len(videos), 0
    unreadable: dict[str, str] = {}
    for number, video in enumerate(videos):
        path = folder / f"{video.name}.npz"
        held = read_arrays(path) if path.is_file() else {}
        applied = read_applied(held)
        for name in applied.keys() & extractors.keys():
            check_same(name, applied[name], extractors[name].facts, f"{path} was extracted")
        todo = {
            name: extractor
            for name, extractor in extractors.items()
            if name not in applied and not held.keys() & set(extractor.keys)
        }
        found, new, failed = extract(video, todo)
        if failed:
            unreadable[video.name] = next(iter(failed.values()))
        if new:
            held |= found | {APPLIED: np.array(json.dumps(applied | new))}
            with atomic_path(path) as temporary:
                np.savez(temporary, **held)  # type: ignore[arg-type]
            extracted += 1
        progress("extracting", number + 1, count)
    if unreadable:
        reason = check_some_readable(unreadable.values(), count, "videos")
        message = "of %d of %d videos something cannot be read, such as %s: %s"
        logger.warning(message, len(unreadable), count, next(iter(unreadable)), reason)
    return {"found": count, "extracted": extracted, "unreadable": len(unreadable)}


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
