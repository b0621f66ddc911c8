"""Normalisation: y = scale (x - mean) / sqrt(var + epsilon) + bias, with the statistics over different axes.

    BatchNormalization      stored, per channel              LayerNormalization   each suffix from `axis` on
    InstanceNormalization   spatial axes of each channel     RMSNormalization     same, without the mean
    GroupNormalization      groups of channels and space     LpNormalization      x / ||x||_p along one axis
    LRN                     x / (bias + alpha/size sum of x^2 over `size` neighbouring channels)^beta

Statistics of narrow floats are computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pumice.ops.dtypes import numpy_dtype, wide
from pumice.ops.record import Array, Node, Op, OpCost, Outputs, Shape, elements, traffic


def _per_channel(v: Array, rank: int) -> Array:
    return wide(v).reshape(-1, *(1,) * (rank - 2))


def _batch_norm(node: Node, x: Array, scale: Array, bias: Array, mean: Array, var: Array) -> Outputs:
    """In training mode the batch's own statistics are used, and blended into the running ones."""
    epsilon, momentum = node.get("epsilon", 1e-5), node.get("momentum", 0.9)
    if not node.get("training_mode", 0):
        factor = wide(scale) / np.sqrt(wide(var) + epsilon)
        shift = wide(bias) - wide(mean) * factor
        y = wide(x) * _per_channel(factor, x.ndim) + _per_channel(shift, x.ndim)
        return (y.astype(x.dtype, copy=False),)
    axes = (0, *range(2, x.ndim))
    batch_mean, batch_var = wide(x).mean(axis=axes), wide(x).var(axis=axes)
    centred = wide(x) - _per_channel(batch_mean, x.ndim)
    y = centred * _per_channel(wide(scale) / np.sqrt(batch_var + epsilon), x.ndim) + _per_channel(bias, x.ndim)
    running = [momentum * wide(old) + (1 - momentum) * new for old, new in ((mean, batch_mean), (var, batch_var))]
    return y.astype(x.dtype), running[0].astype(mean.dtype), running[1].astype(var.dtype)


def standardise(x: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array, Array]:
    """(x - mean) / sqrt(var + epsilon), the mean, and 1 / sqrt(var + epsilon)."""
    mean = x.mean(axis=axes, keepdims=True)
    centred = x - mean
    inverse = 1 / np.sqrt(np.square(centred).mean(axis=axes, keepdims=True) + epsilon)
    return centred * inverse, mean, inverse


def _instance_norm(node: Node, x: Array, scale: Array, bias: Array) -> Outputs:
    y, _, _ = standardise(wide(x), tuple(range(2, x.ndim)), node.get("epsilon", 1e-5))
    return ((y * _per_channel(scale, x.ndim) + _per_channel(bias, x.ndim)).astype(x.dtype),)


def _grouped(node: Node, x: Array) -> Array:
    grouped = wide(x).reshape(x.shape[0], node.attributes["num_groups"], -1)
    return standardise(grouped, (2,), node.get("epsilon", 1e-5))[0].reshape(x.shape)


def _group_norm_18(node: Node, x: Array, scale: Array, bias: Array) -> Outputs:
    """Scale and bias are per group."""
    repeats = x.shape[1] // node.attributes["num_groups"]
    return _group_norm(node, x, np.repeat(scale, repeats), np.repeat(bias, repeats))


def _group_norm(node: Node, x: Array, scale: Array, bias: Array) -> Outputs:
    y = _grouped(node, x) * _per_channel(scale, x.ndim) + _per_channel(bias, x.ndim)
    return (y.astype(x.dtype),)


def _stash(node: Node, x: Array) -> Array:
    """Statistics are computed in the type that `stash_type` names."""
    return x.astype(numpy_dtype(node.get("stash_type", 1)), copy=False) if x.dtype.itemsize < 4 else x


def _layer_norm(node: Node, x: Array, scale: Array, bias: Array | None = None) -> Outputs:
    axes = tuple(range(node.get("axis", -1) % x.ndim, x.ndim))
    y, mean, inverse = standardise(_stash(node, x), axes, node.get("epsilon", 1e-5))
    y = y.astype(x.dtype, copy=False) * scale
    return (y if bias is None else y + bias), mean, inverse


def _rms_norm(node: Node, x: Array, scale: Array) -> Outputs:
    axes = tuple(range(node.get("axis", -1) % x.ndim, x.ndim))
    data = _stash(node, x)
    inverse = 1 / np.sqrt(np.square(data).mean(axis=axes, keepdims=True) + node.get("epsilon", 1e-5))
    return ((data * inverse).astype(x.dtype, copy=False) * scale, inverse)


def _lp_norm(node: Node, x: Array) -> Outputs:
    """A zero vector stays zero."""
    axis = node.get("axis", -1)
    data = wide(x)
    norm = np.linalg.norm(data, ord=node.get("p", 2), axis=axis, keepdims=True)
    return ((data / np.where(norm == 0, 1, norm)).astype(x.dtype),)


def _lrn(node: Node, x: Array) -> Outputs:
    size, channels = node.attributes["size"], x.shape[1]
    before, after = (size - 1) // 2, size // 2
    pads = [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)]
    squares = np.pad(np.square(wide(x)), pads)
    total = sum(squares[:, i : i + channels] for i in range(size))
    scale = node.get("bias", 1.0) + node.get("alpha", 1e-4) / size * total
    return ((wide(x) / scale ** node.get("beta", 0.75)).astype(x.dtype),)


def _mean_variance(node: Node, x: Array) -> Outputs:
    axes = tuple(node.get("axes") or (0, 2, 3))
    data = wide(x)
    centred = data - data.mean(axis=axes, keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(axis=axes, keepdims=True))
    return ((centred / (deviation + 1e-9)).astype(x.dtype),)


def _skip_layer_norm(
    node: Node, x: Array, skip: Array, scale: Array, beta: Array | None = None, bias: Array | None = None
) -> Outputs:
    """ONNX Runtime's fusion of a residual add and a layer norm; its fourth output is the sum."""
    total: Any = x + skip if bias is None else x + skip + bias
    y, mean, inverse = _layer_norm(node, total, scale, beta)
    return y, mean, inverse, total


def _norm_cost(node: Node, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> OpCost:
    params = sum(elements(shape) for shape in inputs[1:])
    return OpCost(params=params, bytes=traffic(node, inputs, outputs[:1]).bytes)


OPS = (
    Op("BatchNormalization", forward=_batch_norm, cost=_norm_cost),
    Op("InstanceNormalization", forward=_instance_norm, cost=_norm_cost),
    Op("GroupNormalization", since=18, until=20, forward=_group_norm_18, cost=_norm_cost),
    Op("GroupNormalization", since=21, forward=_group_norm, cost=_norm_cost),
    Op("LayerNormalization", since=17, forward=_layer_norm, cost=_norm_cost),
    Op("RMSNormalization", since=23, forward=_rms_norm, cost=_norm_cost),
    Op("LpNormalization", forward=_lp_norm, cost=traffic),
    Op("LRN", forward=_lrn, cost=traffic),
    Op("MeanVarianceNormalization", since=9, forward=_mean_variance, cost=traffic),
    Op("SkipLayerNormalization", domain="com.microsoft", forward=_skip_layer_norm, cost=traffic),
    Op("SimplifiedLayerNormalization", forward=_rms_norm, cost=_norm_cost),
)
