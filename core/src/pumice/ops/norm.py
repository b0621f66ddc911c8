"""Normalisation: y = scale (x - mean) / sqrt(var + epsilon) + bias, with the statistics over different axes.

    BatchNormalization      stored, per channel              LayerNormalization   each suffix from `axis` on
    InstanceNormalization   spatial axes of each channel     RMSNormalization     same, without the mean
    GroupNormalization      groups of channels and space     LpNormalization      x / ||x||_p along one axis
    LRN                     x / (bias + alpha/size sum of x^2 over `size` neighbouring channels)^beta

Statistics of narrow floats are computed in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from pumice.ops.channels import Balanced, Blocked, Channels, Restricted, Same, Site, Summed, Tie, into, out
from pumice.ops.dtypes import numpy_dtype, wide
from pumice.ops.gradient import namespace, sum_to
from pumice.ops.record import Array, Arrays, Node, Op, OpCost, Outputs, Shape, Vjp, Wanted, elements, traffic


def _per_channel(v: Array, rank: int) -> Array:
    return wide(v).reshape(-1, *(1,) * (rank - 2))


def _batch_norm(node: Node, x: Array, scale: Array, bias: Array, mean: Array, var: Array) -> Outputs:
    """In training mode the batch's own statistics are used, and blended into the running ones.

    There the batch's mean and 1 / sqrt(var + epsilon) follow the outputs that ONNX names, for the gradient.
    """
    epsilon, momentum = node.get("epsilon", 1e-5), node.get("momentum", 0.9)
    if not node.get("training_mode", 0):
        factor = wide(scale) / np.sqrt(wide(var) + epsilon)
        shift = wide(bias) - wide(mean) * factor
        y = wide(x) * _per_channel(factor, x.ndim) + _per_channel(shift, x.ndim)
        return (y.astype(x.dtype, copy=False),)
    data = wide(x)
    batch_mean = data.mean(axis=(0, *range(2, x.ndim)))
    y = data - _per_channel(batch_mean, x.ndim)
    batch_var = _channel_products(y, y) / (x.size // x.shape[1])
    inverse = 1 / np.sqrt(batch_var + epsilon)
    y *= _per_channel(wide(scale) * inverse, x.ndim)
    y += _per_channel(bias, x.ndim)
    running = [momentum * wide(old) + (1 - momentum) * new for old, new in ((mean, batch_mean), (var, batch_var))]
    return (
        y.astype(x.dtype, copy=False),
        running[0].astype(mean.dtype),
        running[1].astype(var.dtype),
        batch_mean,
        inverse,
    )


def _channel_products(a: Any, b: Any) -> Any:
    """The sum of a b over everything but the channels."""
    a, b = (x.reshape(x.shape[0], x.shape[1], -1) for x in (a, b))
    return (np.einsum("nci,nci->nc", a, b) if namespace(a) is np else (a * b).sum(axis=2)).sum(axis=0)


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


# --- gradients --------------------------------------------------------------------------------------------------------


def _batch_norm_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    """With n the elements of a channel and the batch's statistics, dx = scale / std (dy - (dbias + x^ dscale) / n)."""
    x, scale = inputs[:2]
    dy = np.zeros_like(x) if grads[0] is None else grads[0]
    training, rank, axes = node.get("training_mode", 0), x.ndim, (0, *range(2, x.ndim))
    mean, inverse = outputs[3:5] if training else (inputs[3], 1 / np.sqrt(inputs[4] + node.get("epsilon", 1e-5)))
    centred = x - _per_channel(mean, rank)
    dbias, dscale = dy.sum(axis=axes), _channel_products(dy, centred) * inverse
    factor = scale * inverse
    if not training:
        return dy * _per_channel(factor, rank), dscale, dbias, -factor * dbias, -0.5 * factor * inverse * dscale
    count = x.size // x.shape[1]
    dmean, dvar = (np.zeros_like(scale) if g is None else g for g in (*grads, None, None)[1:3])
    new = (1 - node.get("momentum", 0.9)) / count
    further = _per_channel(2 * new * dvar, rank) * centred if grads[1:] and dvar.any() else 0
    dx = centred  # in place from here: the array is large
    dx *= _per_channel(-inverse * dscale / count, rank)
    dx += dy
    dx *= _per_channel(factor, rank)
    dx += _per_channel(new * dmean - factor * dbias / count, rank) + further
    momentum = node.get("momentum", 0.9)
    return dx, dscale, dbias, momentum * dmean, momentum * dvar


def standardise_vjp(x: Any, dy: Any, axes: tuple[int, ...], epsilon: float) -> tuple[Any, Any, Any]:
    """The gradient of x through `standardise`: inverse (dy - mean dy - y mean (dy y)); then y and inverse."""
    y, _, inverse = standardise(x, axes, epsilon)
    along = (dy * y).mean(axis=axes, keepdims=True)
    return inverse * (dy - dy.mean(axis=axes, keepdims=True) - y * along), y, inverse


def _channel_sums(dy: Any, y: Any) -> tuple[Any, Any]:
    """Gradients of a scale and a bias per channel."""
    axes = (0, *range(2, dy.ndim))
    return (dy * y).sum(axis=axes), dy.sum(axis=axes)


def _instance_norm_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    x, scale, _ = inputs
    through = grads[0] * _per_channel(scale, x.ndim)
    dx, y, _ = standardise_vjp(x, through, tuple(range(2, x.ndim)), node.get("epsilon", 1e-5))
    return dx, *_channel_sums(grads[0], y)


def _group_norm_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    x, scale, _ = inputs
    groups = node.attributes["num_groups"]
    factors = np.repeat(scale, x.shape[1] // len(scale))  # before opset 21 a scale per group
    grouped = (len(x), groups, -1)
    through = (grads[0] * _per_channel(factors, x.ndim)).reshape(grouped)
    dx, y, _ = standardise_vjp(x.reshape(grouped), through, (2,), node.get("epsilon", 1e-5))
    sums = _channel_sums(grads[0], y.reshape(x.shape))
    return dx.reshape(x.shape), *(s.reshape(len(scale), -1).sum(axis=1) for s in sums)


def _layer_norm_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    """Also through the mean and the inverse deviation, where the graph uses them."""
    x, scale = inputs[:2]
    dy, dmean, dinverse = (*grads, None, None)[:3]
    axes = tuple(range(node.get("axis", -1) % x.ndim, x.ndim))
    dy = np.zeros_like(x) if dy is None else dy
    dx, y, inverse = standardise_vjp(x, dy * scale, axes, node.get("epsilon", 1e-5))
    count = x.size // max(1, inverse.size)
    if dmean is not None:
        dx = dx + dmean / count
    if dinverse is not None:
        dx = dx - dinverse * np.square(inverse) * y / count
    dbias = sum_to(dy, inputs[2].shape) if len(inputs) > 2 and wanted[2] else None
    return [dx, sum_to(dy * y, scale.shape), dbias][: len(inputs)]


def _rms_norm_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    x, scale = inputs
    axes = tuple(range(node.get("axis", -1) % x.ndim, x.ndim))
    inverse = 1 / np.sqrt(np.square(x).mean(axis=axes, keepdims=True) + node.get("epsilon", 1e-5))
    y, dy = x * inverse, np.zeros_like(x) if grads[0] is None else grads[0]
    through = dy * scale
    dx = inverse * (through - y * (through * y).mean(axis=axes, keepdims=True))
    if len(grads) > 1 and grads[1] is not None:
        dx = dx - grads[1] * np.square(inverse) * y / (x.size // inverse.size)
    return dx, sum_to(dy * y, scale.shape)


def _lp_norm_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    x, axis, p = inputs[0], node.get("axis", -1), node.get("p", 2)
    norm = np.linalg.norm(x, ord=p, axis=axis, keepdims=True)
    norm = np.where(norm == 0, 1, norm)
    y = x / norm
    slope = np.sign(x) if p == 1 else y
    return ((grads[0] - slope * (grads[0] * y).sum(axis=axis, keepdims=True)) / norm,)


def _lrn_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    x, dy, size = inputs[0], grads[0], node.attributes["size"]
    alpha, beta, around = node.get("alpha", 1e-4) / size, node.get("beta", 0.75), ((size - 1) // 2, size // 2)
    scale = node.get("bias", 1.0) + alpha * _neighbours(np.square(x), around)
    spread = _neighbours(dy * x / scale ** (beta + 1), around[::-1])
    return (dy / scale**beta - 2 * alpha * beta * x * spread,)


def _neighbours(x: Any, around: tuple[int, int]) -> Any:
    """The sum over the channels from `around[0]` before to `around[1]` after each."""
    padded = np.pad(x, [(0, 0), around, *[(0, 0)] * (x.ndim - 2)])
    return sum(padded[:, i : i + x.shape[1]] for i in range(sum(around) + 1))


def _mean_variance_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    x, dy, axes = inputs[0], grads[0], tuple(node.get("axes") or (0, 2, 3))
    centred = x - x.mean(axis=axes, keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(axis=axes, keepdims=True))
    divisor = deviation + 1e-9
    along = (dy * centred).mean(axis=axes, keepdims=True) / (deviation * np.square(divisor))
    return ((dy - dy.mean(axis=axes, keepdims=True)) / divisor - centred * along,)


def _skip_layer_norm_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    _, skip, *parameters = inputs
    bias = parameters[2] if len(parameters) > 2 else None
    normed = (outputs[3], *parameters[:2])
    dtotal, *found = _layer_norm_vjp(node, normed, outputs, grads[:3], (True, *wanted[2:4]))
    if len(grads) > 3 and grads[3] is not None:
        dtotal = dtotal + grads[3]
    dbias = [] if len(parameters) < 3 else [None if bias is None else sum_to(dtotal, bias.shape)]
    return [dtotal, sum_to(dtotal, skip.shape), *found, *dbias]


_BATCH_NORM = Vjp(_batch_norm_vjp, inputs=(0, 1, 3, 4), outputs=(3, 4))

# --- channels ---------------------------------------------------------------------------------------------------------


def _per_channel_ties(site: Site) -> Iterator[Tie]:
    """Scale, shift and statistics of each channel on axis 1 are its own."""
    for index in range(1, len(site.inputs)):
        if site.has(index):
            yield Same(into(index, 0), out(0, 1))
    yield Same(into(0, 1), out(0, 1))


def _instance_norm_ties(site: Site) -> Iterator[Tie]:
    yield from _per_channel_ties(site)
    yield from _restricted(site, range(2, site.rank(0)))


def _group_norm_ties(site: Site) -> Iterator[Tie]:
    """Each group's statistics are over its channels that are left; before opset 21 scale and bias are per group."""
    if site.node.opset >= 21:
        yield from _per_channel_ties(site)
    yield Balanced(into(0, 1), site.node.attributes["num_groups"])
    yield from _restricted(site, [1])


def _trailing_norm_ties(site: Site) -> Iterator[Tie]:
    """Layer and root-mean-square normalisation: statistics over the trailing axes, of the channels that are left."""
    rank = site.rank(0)
    first = site.node.get("axis", -1) % rank if rank else 0
    for axis in range(first):
        yield Same(into(0, axis), out(0, axis))
    yield from _restricted(site, range(first, rank))
    for index in (1, 2):
        for back in range(1, site.rank(index) + 1):
            if site.size(index, -back) == site.size(0, -back):
                yield Same(into(index, site.rank(index) - back), out(0, rank - back))


def _restricted(site: Site, axes: Iterable[int]) -> Iterator[Tie]:
    for axis in axes:
        yield Same(into(0, axis), out(0, axis))
        yield Restricted(into(0, axis))


def _skip_layer_norm_ties(site: Site) -> Iterator[Tie]:
    """ONNX Runtime's fused residual add (and bias) before the normalisation of the last axis."""
    last = site.rank(0) - 1
    yield from _restricted(site, [last])
    for axis in range(last):
        yield Same(into(0, axis), out(0, axis))
    for axis in range(site.rank(1)):
        if site.size(1, axis) == site.size(0, axis + site.rank(0) - site.rank(1)):
            yield Same(into(1, axis), out(0, axis + site.rank(0) - site.rank(1)))
    for index in range(2, len(site.inputs)):
        if site.has(index):
            yield Same(into(index, 0), out(0, last))
    if site.outputs[-1] is not None and len(site.outputs) > 3:
        for axis in range(site.rank(0)):
            yield Same(out(3, axis), out(0, axis))


def _lp_norm_ties(site: Site) -> Iterator[Tie]:
    along = site.node.get("axis", -1) % site.rank(0)
    for axis in range(site.rank(0)):
        yield Same(into(0, axis), out(0, axis))
    yield Summed(into(0, along))


def _lrn_ties(site: Site) -> Iterator[Tie]:
    yield Blocked(into(0, 1), "LRN divides each channel by its neighbours")


def _mean_variance_ties(site: Site) -> Iterator[Tie]:
    along = {axis % site.rank(0) for axis in site.node.get("axes", (0, 2, 3))}
    for axis in set(range(site.rank(0))) - along:
        yield Same(into(0, axis), out(0, axis))


OPS = (
    Op(
        "BatchNormalization",
        forward=_batch_norm,
        vjp=_BATCH_NORM,
        cost=_norm_cost,
        channels=Channels(_per_channel_ties),
    ),
    Op(
        "InstanceNormalization",
        forward=_instance_norm,
        vjp=Vjp(_instance_norm_vjp, outputs=()),
        cost=_norm_cost,
        channels=Channels(_instance_norm_ties),
    ),
    Op(
        "GroupNormalization",
        since=18,
        until=20,
        forward=_group_norm_18,
        vjp=Vjp(_group_norm_vjp, outputs=()),
        cost=_norm_cost,
        channels=Channels(_group_norm_ties),
    ),
    Op(
        "GroupNormalization",
        since=21,
        forward=_group_norm,
        vjp=Vjp(_group_norm_vjp, outputs=()),
        cost=_norm_cost,
        channels=Channels(_group_norm_ties),
    ),
    Op(
        "LayerNormalization",
        since=17,
        forward=_layer_norm,
        vjp=Vjp(_layer_norm_vjp, inputs=(0, 1), outputs=()),
        cost=_norm_cost,
        channels=Channels(_trailing_norm_ties),
    ),
    Op(
        "RMSNormalization",
        since=23,
        forward=_rms_norm,
        vjp=Vjp(_rms_norm_vjp, outputs=()),
        cost=_norm_cost,
        channels=Channels(_trailing_norm_ties),
    ),
    Op(
        "LpNormalization",
        forward=_lp_norm,
        vjp=Vjp(_lp_norm_vjp, outputs=()),
        cost=traffic,
        channels=Channels(_lp_norm_ties),
    ),
    Op("LRN", forward=_lrn, vjp=Vjp(_lrn_vjp, outputs=()), cost=traffic, channels=Channels(_lrn_ties)),
    Op(
        "MeanVarianceNormalization",
        since=9,
        forward=_mean_variance,
        vjp=Vjp(_mean_variance_vjp, outputs=()),
        cost=traffic,
        channels=Channels(_mean_variance_ties),
    ),
    Op(
        "SkipLayerNormalization",
        domain="com.microsoft",
        forward=_skip_layer_norm,
        vjp=Vjp(_skip_layer_norm_vjp, inputs=(2,), outputs=(3,)),
        cost=traffic,
        channels=Channels(_skip_layer_norm_ties),
    ),
    Op(
        "SimplifiedLayerNormalization",
        forward=_rms_norm,
        vjp=Vjp(_rms_norm_vjp, outputs=()),
        cost=_norm_cost,
        channels=Channels(_trailing_norm_ties),
    ),
)
