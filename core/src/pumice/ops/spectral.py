"""Fourier transforms, window functions and the mel filter bank.

Complex tensors carry (real, imaginary) in a last axis of size two; a last axis of size one is real. STFT cuts the
signal into frames `frame_step` apart, multiplies each by the window and transforms it; one-sided
results keep n // 2 + 1 bins. Windows are sums of cosines, w[i] = sum over k of a_k cos(2 pi k i / n), with n the size,
or size - 1 if not periodic.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pumice.ops.dtypes import numpy_dtype
from pumice.ops.record import Array, Forward, Node, Op, Outputs


def _complex(x: Array) -> Array:
    return x[..., 0] + 1j * x[..., 1] if x.shape[-1] == 2 else x[..., 0]


def _pairs(z: Array, dtype: np.dtype[np.generic]) -> Array:
    return np.stack([z.real, z.imag], axis=-1).astype(dtype)


def transform(x: Array, length: int, axis: int, onesided: bool) -> Array:
    """Complex spectrum of a complex or real signal, cut or zero-padded to `length`."""
    z = np.fft.fft(x, n=length, axis=axis)
    return np.take(z, range(length // 2 + 1), axis=axis) if onesided else z


def _dft(node: Node, x: Array, length: Array | None, axis: int) -> Outputs:
    axis, onesided, inverse = axis % x.ndim, bool(node.get("onesided", 0)), node.get("inverse", 0)
    size = x.shape[axis] if not (inverse and onesided) else 2 * (x.shape[axis] - 1)
    count = size if length is None else int(length)
    if inverse and onesided:
        return (np.fft.irfft(_complex(x), n=count, axis=axis)[..., None].astype(x.dtype),)
    if inverse:
        return (_pairs(np.fft.ifft(_complex(x), n=count, axis=axis), x.dtype),)
    return (_pairs(transform(_complex(x), count, axis, onesided), x.dtype),)


def _dft_17(node: Node, x: Array, length: Array | None = None) -> Outputs:
    return _dft(node, x, length, node.get("axis", 1))


def _dft_20(node: Node, x: Array, length: Array | None = None, axis: Array | None = None) -> Outputs:
    return _dft(node, x, length, -2 if axis is None else int(axis))


def _stft(node: Node, x: Array, step: Array, window: Array | None = None, length: Array | None = None) -> Outputs:
    signal = _complex(x) if x.ndim == 3 else x
    size = int(length) if length is not None else len(window) if window is not None else signal.shape[1]
    count = 1 + (signal.shape[1] - size) // int(step)
    frames = np.stack([signal[:, i * int(step) : i * int(step) + size] for i in range(count)], axis=1)
    weighted = frames if window is None else frames * window
    return (_pairs(transform(weighted, size, 2, bool(node.get("onesided", 1))), x.dtype),)


def _cosine_window(coefficients: Sequence[float]) -> Forward:
    def forward(node: Node, size: Array) -> Outputs:
        count = int(size)
        span = count if node.get("periodic", 1) else count - 1
        angle = 2 * np.pi * np.arange(count) / span
        y = sum(a * np.cos(k * angle) for k, a in enumerate(coefficients))
        return (np.asarray(y).astype(numpy_dtype(node.get("output_datatype", 1))),)

    return forward


def _mel_weights(node: Node, bins: Array, length: Array, rate: Array, low: Array, high: Array) -> Outputs:
    """Triangles between neighbouring edges that are equally spaced in mel = 2595 log10(1 + f / 700)."""
    count, bottom, top = int(bins), *(2595 * np.log10(1 + float(f) / 700) for f in (low, high))
    mels = bottom + np.arange(count + 2) * ((top - bottom) / (count + 2))
    edges = ((int(length) + 1) * (700 * (10 ** (mels / 2595) - 1)) // int(rate)).astype(int)
    position = np.arange(int(length) // 2 + 1)[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = np.where(centre > left, (position - left) / np.maximum(centre - left, 1), position == centre)
    falling = np.where(right > centre, (right - position) / np.maximum(right - centre, 1), 0)
    up = (position >= left) & (position <= centre)
    y = np.where((position >= centre) & (position < right), falling, np.where(up, rising, 0))
    return (y.astype(numpy_dtype(node.get("output_datatype", 1))),)


OPS = (
    Op("DFT", since=17, until=19, forward=_dft_17),
    Op("DFT", since=20, forward=_dft_20),
    Op("STFT", since=17, forward=_stft),
    Op("HannWindow", since=17, forward=_cosine_window((0.5, -0.5))),
    Op("HammingWindow", since=17, forward=_cosine_window((25 / 46, -21 / 46))),
    Op("BlackmanWindow", since=17, forward=_cosine_window((0.42, -0.5, 0.08))),
    Op("MelWeightMatrix", since=17, forward=_mel_weights),
)
