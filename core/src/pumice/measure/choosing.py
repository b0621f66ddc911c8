"""Which metrics to use when the user names none.

The rule looks at the outputs of the original model for the first samples, and at their labels. An output is
*classifier-like* if it is floating-point, has two or three axes and between 2 and 200,000 columns on the last one, and
is no embedding: the largest of a vector's components decides nothing, so that one is compared by direction.

What tells the two apart is whether a row makes a choice. Cross-entropy trains logits until their softmax p leaves few
classes in play, exp(-sum p ln p) of them (the perplexity), whereas components of like size leave nearly all: ImageNet's
logits some 100 of 1,000, a token's 384 features 350. So an output of `WIDE` columns or more is an embedding if in the
mean of its rows at least half of them stay in play; rows within [0, 1] are shares already and only divided by their
sum. Any output whose rows are all of unit Euclidean length is one too, unless each is a distribution, which has that
length when it is sure.

A drop of 1% is 1% of the decisions where decisions are compared. Of a cosine it is the mean of 1 - cos(a, b), half the
squared distance of a / |a| and b / |b|: an error with 2% of the energy of the vector.

    labels              outputs              metrics, the first being the one that counts
    whole numbers       classifier-like      top1 (token-accuracy if a label a position), agreement
    whole numbers       one column           top1, agreement
    one-hot             classifier-like      top1, agreement
    real numbers        of the same size     mse, relative-error
    none                the first is         agreement, cosine
                        classifier-like
    none                one number           mse, relative-error
    none                anything else        cosine, relative-error
    unusable            the first is         agreement, relative-error
                        classifier-like
    unusable            anything else        relative-error
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.errors import DataError
from pumice.measure.metrics import Agreement, Cosine, Mse, RelativeError, TokenAccuracy, Top1
from pumice.strategy import Metric, Need, Runtime

if TYPE_CHECKING:
    from pumice.data import Dataset

Array = NDArray[Any]
MOST_CLASSES = 200_000
WIDE = 32
"""Columns from which on an output may be an embedding: in fewer nobody embeds, and a choice leaves half of few."""
LOOKED_AT = 256
"""Rows of an output that the rule looks at, evenly spread: a vocabulary's are long."""


@attrs.frozen(kw_only=True)
class ChosenMetrics:
    """Metrics, the first being the one that budgets are judged by, and what the user should know of the choice."""

    metrics: tuple[Metric, ...]
    notes: tuple[str, ...] = ()


def choose_metrics(
    model: Any,
    dataset: Dataset | None,
    metrics: Sequence[str | Metric] | None = None,
    *,
    runtime: Runtime | str | None = None,
) -> ChosenMetrics:
    """The metrics named by the user, or those that fit.

    Args:
        model: the original model, its path, an open `Session`, or its outputs for the first batch of `dataset`.
        dataset: the data to measure on; None gives no metrics at all.
        metrics: a name, or names or instances; None chooses by the rule above.
        runtime: runs the model on one batch; None takes the best installed.

    Raises:
        PluginError: a named metric is not installed.
        DataError: a named metric needs labels that the data does not have.
    """
    if metrics:
        return _named([metrics] if isinstance(metrics, str) else metrics, dataset)
    if dataset is None:
        return ChosenMetrics(metrics=(), notes=("no data was given: accuracy was not measured",))
    batch = next(dataset.batches(limit=8))
    outputs = model if isinstance(model, Mapping) else _outputs(model, batch.feeds, runtime)
    if batch.labels is not None:
        labels = np.asarray(batch.labels)
        chosen = _for_labels(outputs, labels)
        if chosen:
            return ChosenMetrics(metrics=chosen)
        why = f"the labels ({_described(labels)}) fit no output of the model ({_shapes(outputs)})"
        fidelity = tuple(m if m.fidelity else RelativeError() for m in _without_labels(outputs))
        fidelity = tuple(dict.fromkeys(fidelity))  # a cosine would be that with the labels
    else:
        why, fidelity = "the data has no labels", _without_labels(outputs)
    note = f"{why}, so accuracy is fidelity: how closely the model follows the original, not how often it is right"
    return ChosenMetrics(metrics=fidelity, notes=(note,))


def _described(labels: Array) -> str:
    if labels.dtype.kind not in "iufb" or not labels.size:
        return f"shape {list(labels.shape)}, {'texts' if labels.dtype.kind in 'OU' else labels.dtype}"
    return f"shape {list(labels.shape)}, {labels.min():g} to {labels.max():g}"


def _shapes(outputs: Mapping[str, Array]) -> str:
    shown = [f"'{name}' {list(array.shape)}" for name, array in outputs.items()]
    return ", ".join(shown[:4]) + (", ..." if len(shown) > 4 else "")


def classifier_like(output: Array) -> bool:
    """The rule of this module, for one output."""
    if "float" not in output.dtype.name or output.ndim not in {2, 3} or not 2 <= output.shape[-1] <= MOST_CLASSES:
        return False
    rows = output.reshape(-1, output.shape[-1])
    return not _embedding(rows[:: max(1, len(rows) // LOOKED_AT)].astype(np.float64))


def _embedding(rows: Array) -> bool:
    """Whether rows (n, columns) are vectors with a direction rather than scores of classes."""
    shares = bool(((rows >= 0.0) & (rows <= 1.0)).all())
    sums = rows.sum(axis=1, keepdims=True)
    if np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-3):
        return not (shares and np.allclose(sums, 1.0, atol=1e-3))
    if rows.shape[1] < WIDE or not np.isfinite(rows).all():
        return False
    if not shares:
        rows = np.exp(rows - rows.max(axis=1, keepdims=True))
        sums = rows.sum(axis=1, keepdims=True)
    chances = rows / np.where(sums > 0.0, sums, 1.0)
    entropy = -(chances * np.log(np.where(chances > 0.0, chances, 1.0))).sum(axis=1)
    return bool(np.exp(entropy).mean() >= rows.shape[1] / 2)


def _named(metrics: Sequence[str | Metric], dataset: Dataset | None) -> ChosenMetrics:
    from pumice.registry import registry

    made = tuple(registry().make(Metric, metric) for metric in metrics)
    if dataset is None:
        raise DataError(f"metric '{made[0].name}' needs data to measure on: give some")
    for metric in made:
        if Need.LABELS in metric.needs and not dataset.labelled:
            raise DataError(
                f"metric '{metric.name}' needs labels and {dataset.name} has none: add labels, or use 'agreement'"
            )
    return ChosenMetrics(metrics=made)


def _outputs(model: Any, feeds: Mapping[str, Array], runtime: Runtime | str | None) -> dict[str, Array]:
    from pumice.measure.runtimes import as_session

    return as_session(model, runtime=runtime).run(feeds)


def _for_labels(outputs: Mapping[str, Array], labels: Array) -> tuple[Metric, ...]:
    """Metrics that compare with labels, the first fitting output deciding; empty if none fits."""
    for output in outputs.values():
        if "float" not in output.dtype.name or labels.dtype.kind not in "iufb":
            continue
        whole = labels.dtype.kind in "iub" or np.array_equal(labels, np.rint(labels))
        if whole and _counts_classes(output, labels):
            per_position = labels.ndim > 1 and labels.shape != output.shape and labels.shape[-1] > 1
            return (TokenAccuracy() if per_position else Top1(), Agreement())
        if labels.dtype.kind == "f" and labels.size == output.size:
            return (Mse(), RelativeError())
    return ()


def _counts_classes(output: Array, labels: Array) -> bool:
    """True if the labels number the classes of the output, or are one-hot over them."""
    columns = output.shape[-1] if output.ndim > 1 else 1
    if output.ndim > 1 and labels.shape == output.shape:
        return columns > 1 and bool((labels.sum(axis=-1) == 1).all() and labels.min() >= 0)
    shape = labels.shape[:-1] if labels.ndim == output.ndim and labels.shape[-1] == 1 else labels.shape
    classes_last = output.ndim > 1 and output.shape[:-1] == shape
    classes_on_axis_1 = output.ndim > 2 and (output.shape[0], *output.shape[2:]) == shape
    if output.ndim == 1 or (classes_last and columns == 1):
        return labels.size == output.size and labels.dtype.kind in "iub" and set(np.unique(labels)) <= {0, 1}
    count = columns if classes_last else output.shape[1]
    return (classes_last or classes_on_axis_1) and labels.max() < count and (labels.min() >= 0 or labels.ndim > 1)


def _without_labels(outputs: Mapping[str, Array]) -> tuple[Metric, ...]:
    floats = [a for a in outputs.values() if "float" in a.dtype.name]
    if not floats or classifier_like(floats[0]):
        return (Agreement(), Cosine())
    if floats[0].size == len(np.atleast_1d(floats[0])):
        return (Mse(), RelativeError())  # the cosine of two numbers knows their signs only
    return (Cosine(), RelativeError())
