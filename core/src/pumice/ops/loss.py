"""Losses that ONNX defines as operators: negative log-likelihood, and softmax cross-entropy on top of it.

    l[n, d] = -weight[t] logp[n, t, d]    with t = target[n, d], zero where t is `ignore_index`
    mean = sum l / sum of the weights used

The input is (N, C, d1, ...), the target (N, d1, ...).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pumice.ops.dtypes import wide
from pumice.ops.gradient import namespace, spread, zeros
from pumice.ops.record import Array, Arrays, Node, Op, Outputs, Vjp, Wanted, traffic
from pumice.ops.softmax import log_softmax


def nll(node: Node, logp: Array, target: Array, weight: Array | None) -> Array:
    ignored = target == node.get("ignore_index") if "ignore_index" in node.attributes else np.zeros_like(target, bool)
    index = np.where(ignored, 0, target)
    weights = namespace(logp).ones(target.shape, logp.dtype) if weight is None else wide(weight)[index]
    weights = np.where(ignored, 0, weights).astype(logp.dtype)
    loss: Array = -np.take_along_axis(logp, index[:, None], axis=1)[:, 0] * weights
    reduction = node.get("reduction", "mean")
    if reduction == "none":
        return loss
    total = loss.sum() / weights.sum() if reduction == "mean" else loss.sum()
    return namespace(total).asarray(total)  # type: ignore[no-any-return]


def _nll(node: Node, x: Array, target: Array, weight: Array | None = None) -> Outputs:
    return (nll(node, wide(x), target, weight).astype(x.dtype),)


def _cross_entropy(node: Node, x: Array, target: Array, weight: Array | None = None) -> Outputs:
    logp = log_softmax(wide(x), axis=1)
    return nll(node, logp, target, weight).astype(x.dtype), logp.astype(x.dtype)


def _gradient(node: Node, logp: Any, target: Any, weight: Any, dy: Any) -> Any:
    """Of the loss with respect to the log-probabilities."""
    ignored = target == node.get("ignore_index") if "ignore_index" in node.attributes else np.zeros_like(target, bool)
    index = np.where(ignored, 0, target)
    weights = (~ignored).astype(logp.dtype) if weight is None else np.where(ignored, 0, weight[index])
    reduction = node.get("reduction", "mean")
    each = -weights * spread(dy, target.shape)
    grad = zeros(logp)
    np.put_along_axis(grad, index[:, None], (each / weights.sum() if reduction == "mean" else each)[:, None], axis=1)
    return grad


def _nll_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    logp, target, weight = (*inputs, None)[:3]
    return [_gradient(node, logp, target, weight, grads[0]), *[None] * (len(inputs) - 1)]


def _cross_entropy_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    _, target, weight = (*inputs, None)[:3]
    logp, extra = outputs[1], grads[1] if len(grads) > 1 else None
    grad = zeros(logp) if grads[0] is None else _gradient(node, logp, target, weight, grads[0])
    grad = grad if extra is None else grad + extra
    return [grad - np.exp(logp) * grad.sum(axis=1, keepdims=True), *[None] * (len(inputs) - 1)]


OPS = (
    Op(
        "NegativeLogLikelihoodLoss",
        since=12,
        forward=_nll,
        vjp=Vjp(_nll_vjp, wrt=(0,), inputs=(1, 2), outputs=()),
        cost=traffic,
    ),
    Op(
        "SoftmaxCrossEntropyLoss",
        since=12,
        forward=_cross_entropy,
        vjp=Vjp(_cross_entropy_vjp, wrt=(0,), inputs=(1, 2), outputs=(1,)),
        cost=traffic,
    ),
)
