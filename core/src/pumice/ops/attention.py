"""Attention: softmax(Q K^T scale + bias) V over heads, and its relatives.

Three-axis inputs (batch, length, heads * size) are split into heads first; when there are fewer key heads than query
heads each serves a run of queries. The bias sums what the mask, causality, the sliding window and the lengths of padded
keys forbid (minus infinity) or add. Query i sits at absolute position i + offset, where offset counts the keys before
this block: the length of the cache, or valid keys minus queries. A row that may attend nothing gives zeros.

LinearAttention keeps a matrix state S instead of keys: S <- exp(decay) S + k v^T, with v corrected by what S already
holds in the delta rules, and reads o = scale S^T q.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import numpy as np

from pumice.errors import ModelError
from pumice.ops.channels import Channels, Edit, Kept, Port, Same, Site, Tie, into
from pumice.ops.dtypes import numpy_dtype, wide
from pumice.ops.gradient import namespace, sum_to
from pumice.ops.matmul import product
from pumice.ops.record import Array, Arrays, Node, Op, OpCost, Outputs, Shape, Vjp, Wanted, elements, traffic
from pumice.ops.softmax import softmax, softmax_vjp


def split_heads(x: Array, heads: int) -> Array:
    """(batch, length, heads * size) to (batch, heads, length, size)"""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def merge_heads(x: Array) -> Array:
    """The inverse of `split_heads`."""
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


def _share(x: Array, heads: int) -> Array:
    """Each key head repeated for its run of query heads."""
    return x if x.shape[1] == heads else np.repeat(x, heads // x.shape[1], axis=1)


def _bias(node: Node, q: Array, keys: int, past: int | None, mask: Array | None, lengths: Array | None) -> Array:
    """What is added to the scores, broadcastable to (batch, heads, queries, keys)."""
    queries, minus = q.shape[2], -math.inf
    xp = namespace(q)
    bias: Array = xp.zeros((queries, keys), q.dtype)
    if mask is not None:
        added = np.where(mask, 0, minus).astype(q.dtype) if mask.dtype == bool else mask
        missing = [(0, 0)] * (added.ndim - 1) + [(0, keys - added.shape[-1])]
        bias = bias + np.pad(added, missing, constant_values=minus)
    offset: Any = past or 0
    if past is None and lengths is not None:
        offset = (lengths.reshape(-1, 1, 1, 1) - queries).astype(np.int64)
    ahead = xp.arange(keys) - (xp.arange(queries)[:, None] + offset)  # how far the key lies after the query
    left, right = node.get("left_window_size", -1), node.get("right_window_size", -1)
    if node.get("is_causal", 0):
        bias = bias + np.where(ahead <= 0, 0, minus).astype(q.dtype)
    if left >= 0:
        bias = bias + np.where(-ahead <= left, 0, minus).astype(q.dtype)
    if right >= 0:
        bias = bias + np.where(ahead <= right, 0, minus).astype(q.dtype)
    if lengths is not None:
        bias = bias + np.where(xp.arange(keys) < lengths.reshape(-1, 1, 1, 1), 0, minus).astype(q.dtype)
    return bias


def _attention(
    node: Node,
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    past_k: Array | None = None,
    past_v: Array | None = None,
    lengths: Array | None = None,
) -> Outputs:
    flat = q.ndim == 3
    if flat:
        q, k, v = (split_heads(x, node.attributes[f"{n}_num_heads"]) for x, n in ((q, "q"), (k, "kv"), (v, "kv")))
    if past_k is not None and past_v is not None:
        k, v = np.concatenate([past_k, k], axis=2), np.concatenate([past_v, v], axis=2)
    past = None if past_k is None else past_k.shape[2]
    bias = _bias(node, q, k.shape[2], past, mask, lengths)
    scores, probabilities = _scores(node, q, _share(k, q.shape[1]), bias)
    y = product(wide(probabilities), wide(_share(v, q.shape[1]))).astype(q.dtype)
    return (merge_heads(y) if flat else y), k, v, scores


def _scores(node: Node, q: Array, k: Array, bias: Array) -> tuple[Array, Array]:
    """The scores at the stage that `qk_matmul_output_mode` names, and the probabilities."""
    root = math.sqrt(node.get("scale") or 1 / math.sqrt(q.shape[3]))
    factor = q.dtype.type(root)
    scores = product(wide(q * factor), wide(k * factor).swapaxes(2, 3)).astype(q.dtype)
    cap, mode = node.get("softcap", 0.0), node.get("qk_matmul_output_mode", 0)
    capped = np.tanh(scores / cap) * cap if cap > 0 else scores
    biased = capped + bias.astype(q.dtype)
    exact = _precision(node, q.dtype)
    blocked = np.isneginf(bias.max(axis=-1, keepdims=True))
    probabilities = softmax(np.where(blocked, 0, biased).astype(exact))
    probabilities = np.where(blocked, 0, probabilities).astype(q.dtype)
    return (capped, capped, biased, probabilities)[mode], probabilities


def _precision(node: Node, default: np.dtype[Any]) -> np.dtype[Any]:
    code = node.get("softmax_precision")
    return default if code is None else numpy_dtype(code)


def _attention_cost(node: Node, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> OpCost:
    """Two products, each (queries x keys) per head over the head's size."""
    q, k, v = inputs[0], inputs[1], inputs[2]
    assert q is not None
    assert k is not None
    assert v is not None
    past = inputs[4][2] if len(inputs) > 4 and inputs[4] is not None else 0
    keys = k[-2] + past
    if len(q) == 3:
        width = q[-1] + v[-1] * node.attributes["q_num_heads"] // node.attributes["kv_num_heads"]
    else:
        width = q[1] * (q[-1] + v[-1])
    return OpCost(macs=q[0] * q[-2] * keys * width, bytes=traffic(node, inputs, outputs).bytes)


def _flex_attention(node: Node, q: Array, k: Array, v: Array) -> Outputs:
    """Attention whose scores and probabilities pass through graphs of the model's own."""
    factor = q.dtype.type(np.sqrt(np.float32(node.get("scale") or 1 / math.sqrt(q.shape[3]))))
    scores = wide(q * factor) @ wide(_share(k, q.shape[1]) * factor).swapaxes(2, 3)
    exact = _precision(node, scores.dtype)
    scores = scores.astype(q.dtype).astype(exact)
    if "score_mod" in node.attributes:
        (scores,) = node.attributes["score_mod"].run(scores)
    probabilities = softmax(scores.astype(exact, copy=False))
    if "prob_mod" in node.attributes:
        (probabilities,) = node.attributes["prob_mod"].run(probabilities)
    return ((probabilities.astype(exact, copy=False) @ _share(v, q.shape[1]).astype(exact)).astype(v.dtype),)


def _linear_attention(
    node: Node,
    q: Array,
    k: Array,
    v: Array,
    past: Array | None = None,
    decay: Array | None = None,
    beta: Array | None = None,
) -> Outputs:
    rule, groups = node.get("update_rule", "gated_delta"), node.attributes["kv_num_heads"]
    heads, kind = node.attributes["q_num_heads"], q.dtype
    if rule not in ("linear", "gated", "delta", "gated_delta"):
        raise ModelError(f"{node} has update_rule '{rule}', which ONNX does not define")
    queries = split_heads(q.astype(np.float32), heads)
    keys, values = (split_heads(x.astype(np.float32), groups) for x in (k, v))
    forget = None if decay is None else np.exp(split_heads(decay.astype(np.float32), groups))
    rate = None if beta is None else beta.astype(np.float32).transpose(0, 2, 1)[..., None]
    batch, _, time, size = queries.shape
    state = np.zeros((batch, groups, size, values.shape[3]), np.float32) if past is None else past.astype(np.float32)
    scale, y = node.get("scale") or 1 / math.sqrt(size), np.empty((batch, heads, time, values.shape[3]), np.float32)
    for t in range(time):
        if forget is not None:
            state = state * forget[:, :, t, :, None]
        key, value = keys[:, :, t], values[:, :, t]
        if rate is not None:
            value = rate[:, :, t] * (value - (key[:, :, None] @ state)[:, :, 0])
        state = state + key[..., None] * value[:, :, None]
        y[:, :, t] = scale * (queries[:, :, t, None] @ _share(state, heads))[:, :, 0]
    return merge_heads(y).astype(kind), state.astype(kind if past is None else past.dtype)


def _linear_cost(node: Node, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> OpCost:
    """Per step, one outer product and one read of the state, each size x size per head."""
    q, v = inputs[0], inputs[2]
    assert q is not None
    assert v is not None
    return OpCost(macs=2 * q[0] * q[1] * q[2] * v[2] // node.attributes["kv_num_heads"], bytes=elements(q) * 16)


def _rotary_embedding(node: Node, x: Array, cos: Array, sin: Array, positions: Array | None = None) -> Outputs:
    """Rotates pairs of features by an angle that grows with the position."""
    data = x.transpose(0, 2, 1, 3) if x.ndim == 4 else x.reshape(*x.shape[:2], node.attributes["num_heads"], -1)
    size = node.get("rotary_embedding_dim", 0) or data.shape[3]
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    cos, sin = cos[:, :, None], sin[:, :, None]
    turned, kept = data[..., :size], data[..., size:]
    if node.get("interleaved", 0):
        real, imaginary = turned[..., 0::2], turned[..., 1::2]
    else:
        real, imaginary = turned[..., : size // 2], turned[..., size // 2 :]
    parts = (cos * real - sin * imaginary, sin * real + cos * imaginary)
    joined = np.stack(parts, axis=-1).reshape(turned.shape) if node.get("interleaved", 0) else np.concatenate(parts, -1)
    y = np.concatenate([joined, kept], axis=-1)
    return (y.transpose(0, 2, 1, 3) if x.ndim == 4 else y.reshape(x.shape),)


# --- gradients --------------------------------------------------------------------------------------------------------


def _unshare(grad: Any, heads: int) -> Any:
    """The gradient of key heads that were each repeated for a run of query heads."""
    batch, repeated, *rest = grad.shape
    return grad if repeated == heads else grad.reshape(batch, heads, repeated // heads, *rest).sum(axis=2)


def _attention_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    """From P = softmax(S), y = P V: dV = P^T dy, dP = dy V^T, dS = P (dP - sum of P dP), dQ = dS K, dK = dS^T Q."""
    q, _, _, mask, past_k, _, lengths = (*inputs, *[None] * 4)[:7]
    k, v = outputs[1:3]
    dy, dk_given, dv_given, dscores = (*grads, *[None] * 3)[:4]
    flat = q.ndim == 3
    if flat:
        q = split_heads(q, node.attributes["q_num_heads"])
        dy = None if dy is None else split_heads(dy, q.shape[1])
    dy = np.zeros_like(q, shape=(*q.shape[:3], v.shape[3])) if dy is None else dy
    past = None if past_k is None else past_k.shape[2]
    shared = _share(k, q.shape[1])
    bias = _bias(node, q, k.shape[2], past, mask, lengths)
    staged = attrs.evolve(node, attributes={**node.attributes, "qk_matmul_output_mode": 1})
    capped, probabilities = _scores(staged, q, shared, bias)
    mode, dprobabilities = node.get("qk_matmul_output_mode", 0), product(dy, _share(v, q.shape[1]).swapaxes(2, 3))
    extra = np.zeros_like(probabilities) if dscores is None else dscores
    dbiased = softmax_vjp(probabilities, dprobabilities + extra if mode == 3 else dprobabilities)
    dbiased = dbiased + extra if mode == 2 else dbiased
    dcapped = dbiased + extra if mode < 2 else dbiased
    cap, factor = node.get("softcap", 0.0), node.get("scale") or 1 / math.sqrt(q.shape[3])
    ds = factor * (dcapped * (1 - np.square(capped / cap)) if cap > 0 else dcapped)
    dq, heads = product(ds, shared), k.shape[1]
    dk, dv = (_unshare(product(a.swapaxes(2, 3), b), heads) for a, b in ((ds, q), (probabilities, dy)))
    dk, dv = dk if dk_given is None else dk + dk_given, dv if dv_given is None else dv + dv_given
    olds: list[Any] = [None, None]
    if past is not None:
        olds, dk, dv = [dk[:, :, :past], dv[:, :, :past]], dk[:, :, past:], dv[:, :, past:]
    if flat:
        dq, dk, dv = map(merge_heads, (dq, dk, dv))
    dmask = None if mask is None or not wanted[3] else sum_to(dbiased[..., : mask.shape[-1]], mask.shape)
    return [dq, dk, dv, dmask, *olds, None][: len(inputs)]


def _rotary_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    """A rotation is undone by the opposite angle."""
    _, cos, sin, *positions = inputs
    return [_rotary_embedding(node, grads[0], cos, -sin, *positions)[0], *[None] * (len(inputs) - 1)]


_ATTENTION = Vjp(_attention_vjp, wrt=(0, 1, 2, 3, 4, 5), inputs=(0, 3, 6), outputs=(1, 2))

# --- channels ---------------------------------------------------------------------------------------------------------


def _head_ties(site: Site) -> Iterator[Tie]:
    """Whole heads: a key head goes with every query head that reads it. The size of a head enters its scale: it stays.

    Four axes have the heads on axis 1; with three, a head is a run of positions of axis 2.
    """
    axis = 1 if site.rank(0) == 4 else 2
    sizes = [site.size(slot, axis) for slot in (0, 1, 2, ~0)]
    queries = sizes[0] if axis == 1 else site.node.get("q_num_heads")
    keys = sizes[1] if axis == 1 else site.node.get("kv_num_heads")
    if None in sizes or not queries or not keys or any(site.has(index) for index in range(3, len(site.inputs))):
        return
    shared = np.arange(queries) // (queries // keys)
    anchor = into(1, axis)
    per_key = (sizes[1] or 0) // keys
    for slot, size in zip((0, 1, 2, ~0), sizes, strict=True):
        heads = keys if slot in (1, 2) else queries
        head = np.arange(size or 0) // ((size or 0) // heads)
        yield Same(Port(slot, axis), anchor, np.arange(size or 0), (head if slot in (1, 2) else shared[head]) * per_key)


def _heads_edit(site: Site, kept: Kept) -> Edit | None:
    masks = [kept(into(index, 2)) for index in (0, 1)]
    if site.rank(0) == 4 or masks[0] is None or masks[1] is None:
        return None
    names = ("q_num_heads", "kv_num_heads")
    heads = {
        name: int(mask.sum()) * site.node.attributes[name] // len(mask)
        for name, mask in zip(names, masks, strict=True)
        if mask is not None
    }
    return Edit(attributes=heads)


OPS = (
    Op(
        "Attention",
        since=23,
        forward=_attention,
        vjp=_ATTENTION,
        cost=_attention_cost,
        channels=Channels(_head_ties, _heads_edit),
    ),
    Op("FlexAttention", domain="ai.onnx.preview", forward=_flex_attention, cost=_attention_cost),
    Op("LinearAttention", since=27, forward=_linear_attention, cost=_linear_cost),
    Op(
        "RotaryEmbedding",
        since=23,
        forward=_rotary_embedding,
        vjp=Vjp(_rotary_vjp, wrt=(0,), inputs=(1, 2, 3), outputs=()),
        cost=traffic,
    ),
)
