"""Synthetic mammograms of two scanners, with masses and calcifications."""

import numpy as np

CLASSES = ("normal", "mass", "calcification")
DOMAINS = ("linear", "inverse_sigmoid")


def phantoms(count: int, size_px: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Draw synthetic mammograms.

    Texture is white noise filtered by 1/f^b, b in [1.2, 1.6]; half of the time a breast outline
    masks it. A mass is 0.3 exp(-((x/rx)^2 + (y/ry)^2)) with radii of 5 to 45 px, calcifications are
    5 to 12 discs of radius 1 px in a square of 15 to 60 px (of 256; scaled with the image). The
    second domain passes through an inverse sigmoid tone curve.

    Parameters
    ----------
    count
        Images per class and domain.
    size_px
        Side of the image.
    seed
        Of the draw.

    Returns
    -------
    images, labels, domains
        (n, 1, size_px, size_px) uint8, (n,) places in ``CLASSES``, (n,) places in ``DOMAINS``.
    """
    rng = np.random.default_rng(seed)
    labels = np.tile(np.repeat(np.arange(3), count), 2)
    domains = np.repeat(np.arange(2), 3 * count)
    kinds = zip(labels.tolist(), domains.tolist(), strict=True)
    images = np.stack([_phantom(size_px, label, domain, rng) for label, domain in kinds])
    return images[:, None], labels, domains


def _phantom(size_px: int, label: int, domain: int, rng: np.random.Generator) -> np.ndarray:
    scale = size_px / 256
    y, x = np.mgrid[:size_px, :size_px].astype(float)
    frequency = np.hypot(np.fft.fftfreq(size_px)[:, None], np.fft.fftfreq(size_px)[None])
    frequency[0, 0] = 1 / size_px
    noise = np.fft.fft2(rng.standard_normal((size_px, size_px)))
    texture = np.fft.ifft2(noise / frequency ** rng.uniform(1.2, 1.6)).real
    image = 0.15 + 0.5 * (texture - texture.min()) / np.ptp(texture)
    radius = rng.uniform(0.35, 0.5, 2) * size_px
    breast = ((x / (1.6 * radius[0])) ** 2 + ((y - size_px / 2) / radius[1]) ** 2) < 1
    masked = rng.random() < 0.5
    inside = np.argwhere(breast) if masked else np.argwhere(np.ones_like(breast))
    centre = inside[rng.integers(len(inside))]
    if label == 1:
        rx, ry = rng.uniform(5, 45, 2) * scale
        image += 0.3 * np.exp(-(((x - centre[1]) / rx) ** 2 + ((y - centre[0]) / ry) ** 2))
    elif label == 2:
        side = rng.uniform(15, 60) * scale
        for offset in rng.uniform(-side / 2, side / 2, (rng.integers(5, 13), 2)):
            distance = np.hypot(x - centre[1] - offset[1], y - centre[0] - offset[0])
            image[distance <= max(1.0, scale)] += 0.3
    if masked:
        image = np.where(breast, image, 0.02)
    grey: np.ndarray = np.clip(255 * image, 0, 255)
    if domain == 1:
        safe = np.clip(grey, 1, 254)
        grey = np.clip(-(40 / 4) * np.log((255 - safe) / safe) + 210, 0, 255)
    return grey.astype(np.uint8)
