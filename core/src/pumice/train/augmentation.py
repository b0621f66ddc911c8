"""Augmentation: pictures (N, C, H, W) changed at random so that what a network learns does not hang on chance.

    flip     mirrored left to right with probability 1/2
    crop     moved by up to an eighth of its size in both directions; what moves in is the edge repeated
    cutout   a square of half its size, centred anywhere, set to the picture's mean (DeVries and Taylor, 2017)
    mixup    blended with the next of the batch, l x + (1 - l) x', l from Beta(0.2, 0.2); the loss is blended alike
             (Zhang et al., ICLR 2018)

Every draw comes from a generator keyed by (seed, epoch, sample), whatever thread makes the batch; mixup takes that of
the first sample of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pumice.errors import DataError, KnobError, nearest
from pumice.ops.record import Array

AUGMENTATIONS = ("flip", "crop", "cutout", "mixup")


def check(names: Sequence[str]) -> None:
    """Raises KnobError for a name that does not exist."""
    for name in names:
        if name not in AUGMENTATIONS:
            raise KnobError(f"step 'train': there is no augmentation '{name}'{nearest(name, AUGMENTATIONS)}")


def generator(seed: int, epoch: int, sample: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch << 40 | sample], np.uint64)))


def augmented(pictures: Array, names: Sequence[str], draws: Sequence[np.random.Generator], where: str) -> Array:
    """Each picture changed by its own generator; a new array.

    Raises:
        DataError: the input is not pictures.
    """
    if pictures.ndim != 4 or pictures.dtype.kind != "f":
        raise DataError(f"input '{where}' is not a batch of pictures (N, C, H, W): leave augment out for this model")
    changed = np.array(pictures)
    for picture, draw in zip(changed, draws, strict=True):
        if "flip" in names and draw.random() < 0.5:
            picture[...] = picture[:, :, ::-1].copy()
        if "crop" in names:
            picture[...] = _moved(picture, draw)
        if "cutout" in names:
            _cut(picture, draw)
    return changed


def _moved(picture: Array, draw: np.random.Generator) -> Array:
    height, width = picture.shape[1:]
    down, right = (int(draw.integers(-(n // 8), n // 8 + 1)) for n in (height, width))
    rows, columns = np.arange(height) + down, np.arange(width) + right
    return picture[:, rows.clip(0, height - 1)[:, None], columns.clip(0, width - 1)]


def _cut(picture: Array, draw: np.random.Generator) -> None:
    mean = picture.mean()
    spans = []
    for size in picture.shape[1:]:
        middle = int(draw.integers(size))
        spans.append(slice(max(0, middle - size // 4), middle + size // 4))
    picture[:, spans[0], spans[1]] = mean


def share(draw: np.random.Generator) -> float:
    """The share of a sample itself in its blend; at least half."""
    own = float(draw.beta(0.2, 0.2))
    return max(own, 1 - own)


def mixed(pictures: Array, own: float) -> Array:
    """Each picture blended with the next of the batch."""
    following = np.roll(pictures, -1, axis=0)
    return (own * pictures + (1 - own) * following).astype(pictures.dtype)
