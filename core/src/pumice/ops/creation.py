"""Tensors made from a shape or a few numbers: constants, ranges, identity matrices and random draws.

ONNX fixes the distribution of a draw, not its generator. A draw is the same on every run: from the node's `seed`, or,
without one, from the name of its output, so that different nodes draw differently.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from pumice.errors import UnsupportedOp
from pumice.ops.channels import Channels, Edit, Free, Kept, Site, Tie, kept_sizes, out
from pumice.ops.dtypes import numpy_dtype, wide
from pumice.ops.record import STOP, Array, Forward, Node, Op, Outputs

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


# --- channels ---------------------------------------------------------------------------------------------------------


def _filled_ties(site: Site) -> Iterator[Tie]:
    """All elements are equal, so there may be fewer."""
    for axis in range(site.rank(~0)):
        yield Free(out(0, axis))


def _filled_edit(site: Site, kept: Kept) -> Edit:
    return Edit(vectors={0: kept_sizes(site, kept, ~0)})


OPS = (
    Op("Constant", forward=_constant),
    Op("ConstantOfShape", since=9, forward=_constant_of_shape, vjp=STOP, channels=Channels(_filled_ties, _filled_edit)),
    Op("EyeLike", since=9, forward=_eye_like, vjp=STOP),
    Op("Range", since=11, forward=_range, vjp=STOP),
    Op("RandomNormal", forward=_random(_normal), vjp=STOP),
    Op("RandomUniform", forward=_random(_uniform), vjp=STOP),
    Op("RandomNormalLike", forward=_random_like(_normal), vjp=STOP),
    Op("RandomUniformLike", forward=_random_like(_uniform), vjp=STOP),
    Op("Bernoulli", since=15, forward=_bernoulli, vjp=STOP),
)
