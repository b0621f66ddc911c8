"""CTC (Graves et al., ICML 2006): the probability of a label sequence, summed over all its alignments with the frames.

The labels l, blanks put around each, give l' of 2 L + 1 symbols. With p[t, c] the probability of class c at frame t,
a[t, s] sums over the alignments of the first t frames with the first s symbols, and b[t, s] over those of the rest:

    a[t, s] = p[t, l'[s]] (a[t-1, s] + a[t-1, s-1] + a[t-1, s-2] where l'[s] is no blank and not l'[s-2])
    loss = -log(a[T, 2L] + a[T, 2L + 1]) / L        d loss / d z[t, c] = (p[t, c] - share of alignments with c at t) / L

averaged over the batch. Everything is in logarithms. Labels are class numbers (N, L), padded with negative ones (or
rows of different lengths); a sample whose labels do not fit into its frames counts for nothing, as no alignment exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice import Choice, Int, Loss, Need, Text, hookimpl, knob
from pumice.errors import DataError

Array = NDArray[Any]
NEVER = -np.inf


@attrs.frozen(kw_only=True)
class Ctc(Loss):
    """Connectionist temporal classification: label sequences without alignment."""

    name = "ctc"
    needs = frozenset({Need.LABELS})
    blank: int = knob(0, Int(0, 2**31 - 1), help="class number of the blank")
    layout: str = knob("batch-first", Choice("batch-first", "time-first"), help="(N, T, C) or (T, N, C)")
    output: str = knob(
        "", Text("name of an output"), help="output with the scores; empty takes the first of three axes"
    )

    def value_and_grad(self, outputs: Mapping[str, Array], batch: Any) -> tuple[float, dict[str, Array]]:
        if batch.labels is None:
            raise DataError("the loss 'ctc' needs labels: add them to the data, or choose another loss")
        fitting = [key for key, y in outputs.items() if y.ndim == 3 and self.output in ("", key)]
        if not fitting:
            raise DataError("the loss 'ctc' needs an output of three axes, (samples, frames, classes): name it")
        name = fitting[0]
        scores = outputs[name] if self.layout == "batch-first" else outputs[name].swapaxes(0, 1)
        if len(scores) != len(batch.labels):
            raise DataError(
                f"the loss 'ctc' finds {len(scores)} samples in the output '{name}' and {len(batch.labels)} labels: "
                f"set the knob 'layout'"
            )
        total, grad = 0.0, np.zeros(scores.shape, np.float64)
        for i, row in enumerate(batch.labels):
            labels = np.asarray(row).reshape(-1).astype(np.int64)
            value, grad[i] = self._sample(
                scores[i].astype(np.float64), self._checked(labels[labels >= 0], scores.shape[2])
            )
            total += value
        grad = (grad / len(scores)).astype(np.result_type(scores.dtype, np.float32))
        return total / len(scores), {name: grad if self.layout == "batch-first" else grad.swapaxes(0, 1)}

    def _checked(self, labels: Array, classes: int) -> Array:
        wrong = (labels >= classes) | (labels == self.blank)
        if wrong.any() or self.blank >= classes:
            raise DataError(
                f"label {labels[wrong][0] if wrong.any() else self.blank} is the blank or not one of the {classes} "
                f"classes of the model: correct the labels, or set the knob 'blank'"
            )
        return labels

    def _sample(self, z: Array, labels: Array) -> tuple[float, Array]:
        """Loss and gradient of one sample, z of shape (frames, classes)."""
        shifted = z - z.max(axis=1, keepdims=True)
        logp = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        symbols = np.full(2 * len(labels) + 1, self.blank)
        symbols[1::2] = labels
        emitted = logp[:, symbols]
        ahead, behind = _prefixes(emitted, _skips(symbols)), _prefixes(emitted[::-1, ::-1], _skips(symbols[::-1]))
        whole = np.logaddexp.reduce(ahead[-1, -2:])
        if whole == NEVER:
            return 0.0, np.zeros_like(z)
        posterior = np.exp(ahead + behind[::-1, ::-1] - emitted - whole)
        share = np.zeros_like(z)
        for column, symbol in zip(posterior.T, symbols, strict=True):
            share[:, symbol] += column
        many = max(1, len(labels))
        return -float(whole) / many, (np.exp(logp) - share) / many


def _skips(symbols: Array) -> Array:
    """Where a symbol may follow the one two places before it."""
    allowed = np.zeros(len(symbols), bool)
    allowed[2:] = (symbols[2:] != symbols[:-2]) & (np.arange(2, len(symbols)) % 2 == 1)
    return allowed


def _prefixes(emitted: Array, skips: Array) -> Array:
    """log a[t, s] of all alignments of the first frames with the first symbols."""
    frames, count = emitted.shape
    a = np.full((frames, count), NEVER)
    a[0, :2] = emitted[0, :2]
    for t in range(1, frames):
        total = a[t - 1].copy()
        total[1:] = np.logaddexp(total[1:], a[t - 1, :-1])
        total[2:] = np.where(skips[2:], np.logaddexp(total[2:], a[t - 1, :-2]), total[2:])
        a[t] = total + emitted[t]
    return a


@hookimpl
def pumice_losses() -> Iterator[type[Loss]]:
    yield Ctc
