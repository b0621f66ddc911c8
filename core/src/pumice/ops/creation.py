"""Tensors made from a shape or a few numbers: constants, ranges, identity matrices and random draws.

ONNX fixes the distribution of a draw, not its generator. A draw is the same on every run: from the node's `seed`, or,
without one, from the name of its output, so that different nodes draw differently.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from pumice.errors import UnsupportedOp
from pumice.ops.dtypes import numpy_dtype, wide
from pumice.ops.record import Array, Forward, Node, Op, Outputs

_SCALARS: dict[str, Any] = {
    "value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64,
    "value_string": object, "value_strings": object,
}  # fmt: skip


def _constant(node: Node) -> Outputs:
    """The plan computes it once, when it is compiled."""
    ((attribute, value),) = node.attributes.items()
    if attribute == "value":
        return (value,)
    if attribute not in _SCALARS:
        raise UnsupportedOp(f"{node} holds a {attribute}, which pumice does not read")
    return (np.array(value, dtype=_SCALARS[attribute]),)


def _constant_of_shape(node: Node, shape: Array) -> Outputs:
    value = node.get("value", np.zeros(1, np.float32))
    return (np.full(tuple(int(n) for n in shape), value.reshape(-1)[0], value.dtype),)


def _eye_like(node: Node, x: Array) -> Outputs:
    dtype = numpy_dtype(node.attributes["dtype"]) if "dtype" in node.attributes else x.dtype
    return (np.eye(x.shape[0], x.shape[1], k=node.get("k", 0), dtype=dtype),)


def _range(node: Node, start: Array, limit: Array, delta: Array) -> Outputs:
    """`start + i delta`, in float32 for narrow floats."""
    first, last, step = (wide(v).reshape(()) for v in (start, limit, delta))
    count = max(0, int(np.ceil((last - first) / step)))
    return ((first + np.arange(count).astype(first.dtype) * step).astype(start.dtype),)


def _generator(node: Node) -> np.random.Generator:
    seed = node.get("seed")
    text = node.outputs[0].encode()
    return np.random.default_rng(zlib.crc32(text) if seed is None else int(np.float32(seed).view(np.uint32)))


def _normal(node: Node, shape: tuple[int, ...]) -> Array:
    return _generator(node).normal(node.get("mean", 0.0), node.get("scale", 1.0), shape)


def _uniform(node: Node, shape: tuple[int, ...]) -> Array:
    return _generator(node).uniform(node.get("low", 0.0), node.get("high", 1.0), shape)


def _random(draw: Any) -> Forward:
    def forward(node: Node) -> Outputs:
        return (draw(node, tuple(node.attributes["shape"])).astype(numpy_dtype(node.get("dtype", 1))),)

    return forward


def _random_like(draw: Any) -> Forward:
    def forward(node: Node, x: Array) -> Outputs:
        dtype = numpy_dtype(node.attributes["dtype"]) if "dtype" in node.attributes else x.dtype
        return (draw(node, x.shape).astype(dtype),)

    return forward


def _bernoulli(node: Node, x: Array) -> Outputs:
    dtype = numpy_dtype(node.attributes["dtype"]) if "dtype" in node.attributes else x.dtype
    return ((_generator(node).random(x.shape) < x).astype(dtype),)


OPS = (
    Op("Constant", forward=_constant),
    Op("ConstantOfShape", since=9, forward=_constant_of_shape),
    Op("EyeLike", since=9, forward=_eye_like),
    Op("Range", since=11, forward=_range),
    Op("RandomNormal", forward=_random(_normal)),
    Op("RandomUniform", forward=_random(_uniform)),
    Op("RandomNormalLike", forward=_random_like(_normal)),
    Op("RandomUniformLike", forward=_random_like(_uniform)),
    Op("Bernoulli", since=15, forward=_bernoulli),
)
