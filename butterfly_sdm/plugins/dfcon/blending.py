"""
Make manipulated faces from real ones by self-blending, to train or test without a set of fakes.
"""

import io

import numpy as np
from PIL import Image, ImageFilter


def self_blend(face: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """
    Blend a changed copy of a face back into itself through a soft ellipse.

    The copy is changed in brightness and contrast, blur, compression and geometry, as the traces of
    a swapped face are [1]_.

    Parameters
    ----------
    face
        (h, w) or (h, w, 3) uint8.
    rng
        Draws the changes.

    Returns
    -------
    ndarray of the shape of ``face``, uint8

    References
    ----------
    .. [1] Shiohara & Yamasaki (2022). Detecting deepfakes with self-blended images. CVPR.
    """
    height, width = face.shape[:2]
    image = Image.fromarray(face)
    scale, turn = rng.uniform(0.94, 1.06), np.deg2rad(rng.uniform(-5, 5))
    shift = rng.uniform(-0.04, 0.04, 2) * (width, height)
    cos, sin = np.cos(turn) / scale, np.sin(turn) / scale
    centre = np.array([width / 2, height / 2])
    offset = centre - np.array([[cos, sin], [-sin, cos]]) @ (centre + shift)
    matrix = (cos, sin, offset[0], -sin, cos, offset[1])
    copy = image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        copy = copy.filter(ImageFilter.GaussianBlur(rng.uniform(0.8, 1.8)))
    buffer = io.BytesIO()
    copy.save(buffer, "JPEG", quality=int(rng.integers(20, 60)))
    with Image.open(buffer) as compressed:
        changed = np.asarray(compressed.convert(image.mode), dtype=float)
    changed = (
        (changed - changed.mean()) * rng.uniform(0.75, 1.25)
        + changed.mean()
        + rng.choice([-1, 1]) * rng.uniform(10, 30)
    )
    y, x = np.mgrid[:height, :width]
    middle = (np.array([0.5, 0.55]) + rng.uniform(-0.05, 0.05, 2)) * (width, height)
    radius = rng.uniform(0.25, 0.4, 2) * (width, height)
    distance = np.hypot((x - middle[0]) / radius[0], (y - middle[1]) / radius[1])
    mask = np.clip((1.15 - distance) / 0.3, 0, 1)
    mask = mask[..., None] if face.ndim == 3 else mask
    blended: np.ndarray = np.clip(face * (1 - mask) + changed * mask, 0, 255)
    return blended.round().astype(np.uint8)
