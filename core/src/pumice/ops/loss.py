"""Losses that ONNX defines as operators: negative log-likelihood, and softmax cross-entropy on top of it.

    l[n, d] = -weight[t] logp[n, t, d]    with t = target[n, d], zero where t is `ignore_index`
    mean = sum l / sum of the weights used

The input is (N, C, d1, ...), the target (N, d1, ...).
"""

from __future__ import annotations

import numpy as np

from pumice.ops.dtypes import wide
from pumice.ops.record import Array, Node, Op, Outputs, traffic
from pumice.ops.softmax import log_softmax


def nll(node: Node, logp: Array, target: Array, weight: Array | None) -> Array:
    ignored = target == node.get("ignore_index") if "ignore_index" in node.attributes else np.zeros(target.shape, bool)
    index = np.where(ignored, 0, target)
    weights = np.ones(target.shape, logp.dtype) if weight is None else wide(weight)[index]
    weights = np.where(ignored, 0, weights).astype(logp.dtype)
    loss = -np.take_along_axis(logp, index[:, None], axis=1)[:, 0] * weights
    reduction = node.get("reduction", "mean")
    if reduction == "none":
        return np.asarray(loss)
    return np.asarray(loss.sum() / weights.sum() if reduction == "mean" else loss.sum())


def _nll(node: Node, x: Array, target: Array, weight: Array | None = None) -> Outputs:
    return (nll(node, wide(x), target, weight).astype(x.dtype),)


def _cross_entropy(node: Node, x: Array, target: Array, weight: Array | None = None) -> Outputs:
    logp = log_softmax(wide(x), axis=1)
    return nll(node, logp, target, weight).astype(x.dtype), logp.astype(x.dtype)


OPS = (
    Op("NegativeLogLikelihoodLoss", since=12, forward=_nll, cost=traffic),
    Op("SoftmaxCrossEntropyLoss", since=12, forward=_cross_entropy, cost=traffic),
)
