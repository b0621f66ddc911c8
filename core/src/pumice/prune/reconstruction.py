"""Label-free recovery: every reader is refitted to what it used to be given, from the channels kept.

On calibration data the channels x of the whole model are predicted from the kept channels z of the pruned one, by least
squares around the identity (E maps each kept channel to itself):

    min_D || x - z (E + D) ||^2

and the weights that read them become (E + D) W. Readers are refitted in the order of the graph, each on what the ones
before it now put out; from the first on, so is every reader that lost nothing itself (E is the identity) but is given
something else than it was. Where a reader's output is added to another value r of the network, a residual stream, it
takes up what that has lost as well: z V is fitted to r_whole - r_pruned, and V added to the weights, so that errors do
not pile up from block to block. All this holds for linear readers (a matrix, a convolution of one group), needs no
labels and no training, and changes neither shapes nor cost. Where a reader has a bias of its own, everything is taken
about its mean, and the bias makes up for the difference.

Few positions show correlations that are not there: moments of z are drawn towards their diagonal by k / (k + positions)
for k channels, and what is fitted is as much smaller.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs
import numpy as np
import onnx_ir as ir

from pumice.model import attribute, clone, constant
from pumice.prune.groups import Cuts
from pumice.prune.reading import Array, Reader, Values, readers, summed
from pumice.prune.surgery import take
from pumice.prune.wiring import Place, Wiring

RIDGE = 1e-3
"""Least variance of a channel, as a share of the mean channel's."""

ROWS = 16_384
"""Positions that a weight is fitted to, about."""

WIDTH = 8192
"""Channels of the whole model that are kept at a time, `ROWS` positions of each: half a gigabyte."""


@attrs.frozen
class _Refit:
    """A weight to fit anew."""

    source: Place
    """What it reads."""
    weight: Place
    bias: str | None
    """A constant of its own that is added to its output everywhere."""
    stream: Place | None
    """What its output is added to."""


def reconstruct(wiring: Wiring, cuts: Cuts, pruned: ir.Model, read: Reader) -> tuple[ir.Model, int]:
    """The pruned model with readers refitted, and how many were."""
    model = clone(pruned)
    count = 0
    for part in _parts(wiring, _refits(wiring, cuts)):
        whole = read(wiring.model, dict.fromkeys(place for refit in part for place in _places(refit)))
        for refit in part:
            count += _refit(model, wiring, cuts, refit, whole, read(model, _places(refit)))
    return model, count


def _parts(wiring: Wiring, refits: Iterable[_Refit]) -> Iterator[list[_Refit]]:
    """Refits in their order, as many at a time as memory may hold what they read."""
    part: list[_Refit] = []
    width = 0
    for refit in refits:
        own = sum(wiring.size(place) or WIDTH for place in _places(refit))
        if part and width + own > WIDTH:
            yield part
            part, width = [], 0
        part.append(refit)
        width += own
    yield part


def read_by(wiring: Wiring, cuts: Cuts) -> list[Place]:
    """What `reconstruct` reads of the whole model."""
    return list(dict.fromkeys(place for refit in _refits(wiring, cuts) for place in _places(refit)))


def _places(refit: _Refit) -> list[Place]:
    return [place for place in (refit.source, refit.stream) if place is not None]


def _refits(wiring: Wiring, cuts: Cuts) -> Iterator[_Refit]:
    """From the first reader that loses channels on, every one."""
    begun = False
    for source, weight in readers(wiring, summed(wiring)):
        value = wiring.values[weight.value]
        if not isinstance(source.axis, int) or not isinstance(weight.axis, int):
            continue
        if not value.is_initializer() or len(value.uses()) != 1:
            continue
        if begun or source in cuts:
            begun = True
            yield _Refit(source, weight, *(_added(value) if _is_pointwise(value) else (None, None)))


def _refit(model: ir.Model, wiring: Wiring, cuts: Cuts, refit: _Refit, whole: Values, now: Values) -> bool:
    """Fit one weight; False if there is nothing to make up for."""
    if refit.source not in cuts and all(np.array_equal(whole[place], now[place]) for place in _places(refit)):
        return False
    held, array = model.graph.initializers[refit.weight.value], constant(wiring.values[refit.weight.value])
    assert array is not None
    assert isinstance(refit.weight.axis, int)
    x, z = whole[refit.source].astype(np.float64), now[refit.source].astype(np.float64)
    cut = cuts.get(refit.source, np.zeros(x.shape[1], bool))
    others = {place.axis: m for place, m in cuts.items() if place.value == held.name and place != refit.weight}
    weight = np.moveaxis(take(array, others), refit.weight.axis, 0).astype(np.float64)
    regression = Regression.of(z, centred=refit.bias is not None)
    x[:, ~cut] -= z
    change, offset = regression.fit(x)
    fitted = np.tensordot(np.eye(len(cut))[~cut] + change, weight, (1, 0))
    shift = np.tensordot(offset, weight, (0, 0))
    if refit.stream is not None:
        lost = whole[refit.stream][:, ~cuts.get(refit.stream, np.zeros(whole[refit.stream].shape[1], bool))]
        change, offset = regression.fit(lost - now[refit.stream].astype(np.float64))
        fitted, shift = fitted + change.reshape(fitted.shape), shift.reshape(offset.shape) + offset
    held.const_value = ir.tensor(np.moveaxis(fitted, 0, refit.weight.axis).astype(array.dtype), name=held.name)
    if refit.bias is not None:
        added = constant(bias := model.graph.initializers[refit.bias])
        assert added is not None
        _set(bias, added + shift.reshape(added.shape))
    return True


@attrs.frozen(eq=False)
class Regression:
    """Least squares from the columns of z, (positions, k)."""

    z: Array
    """About its mean, if there is a bias."""
    mean: Array
    moments: Array

    @classmethod
    def of(cls, z: Array, *, centred: bool) -> Regression:
        mean = z.mean(axis=0) if centred else np.zeros(z.shape[1])
        return cls(z - mean, mean, moments(z - mean))

    def fit(self, target: Array) -> tuple[Array, Array]:
        """(k, columns) and (columns,): what z is multiplied by, and what is added, to come close to the target."""
        trust = len(self.z) / (len(self.z) + self.z.shape[1])
        found = np.linalg.solve(self.moments, trust * (self.z.T @ target) / len(self.z))
        middle = target.mean(axis=0) if self.mean.any() else np.zeros(target.shape[1])
        return found, middle - self.mean @ found


def moments(z: Array) -> Array:
    """Second moments of columns, (k, k), safe to invert and to trust."""
    found = z.T @ z / len(z)
    own = np.diag(found).copy()
    found *= len(z) / (len(z) + len(found))
    np.fill_diagonal(found, own + RIDGE * (own.mean() or 1.0))
    return np.asarray(found)


# --- the surroundings of a weight -------------------------------------------------------------------------------------


def _is_pointwise(weight: ir.Value) -> bool:
    """Whether its node multiplies every position by it and nothing else: no neighbours, no padding, no factor."""
    ((node, index),) = weight.uses()
    match node.op_type:
        case "Conv":
            plain = {*(weight.shape or ())[2:], *attribute(node, "strides", ())} <= {1}
            return index == 1 and plain and not any(attribute(node, "pads", ()))
        case "Gemm":
            factors = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
            return index == 1 and factors == (1.0, 1.0) and not attribute(node, "transA", 0)
    return node.op_type == "MatMul" and index == 1 and len(weight.shape or ()) == 2


def _added(weight: ir.Value) -> tuple[str | None, Place | None]:
    """The bias of a weight's node, and the stream that its output is added to."""
    ((node, _),) = weight.uses()
    bias = _own(node.inputs[2]) if len(node.inputs) > 2 else None
    axis = 1 if node.op_type == "Conv" else len(node.outputs[0].shape or ()) - 1
    value = node.outputs[0]
    while len(value.uses()) == 1 and not value.is_graph_output():
        ((then, index),) = value.uses()
        other = then.inputs[1 - index] if then.op_type == "Add" else None
        if other is None:
            break
        if constant(other) is None:
            same = other.shape is not None and value.shape is not None and len(other.shape) == len(value.shape)
            return bias, Place(str(other.name), axis) if same and not other.is_graph_input() else None
        if bias is None and len(other.shape or ()) == 1 and node.op_type == "MatMul":
            bias = _own(other)
        value = then.outputs[0]
    return bias, None


def _own(value: ir.Value | None) -> str | None:
    """The name of a constant that nobody else reads."""
    owned = value is not None and value.is_initializer() and len(value.uses()) == 1
    return str(value.name) if owned and value is not None else None


def with_statistics(model: ir.Model, read: Reader) -> ir.Model:
    """A copy whose batch normalisations know mean and variance of what they now are given, one after the other."""
    model = clone(model)
    for node in model.graph:
        source, *stored = (node.inputs[i] for i in (0, 3, 4)) if node.op_type == "BatchNormalization" else (None,)
        if source is None or any(constant(value) is None for value in stored):
            continue
        place = Place(str(source.name), 1)
        given = read(model, [place])[place].astype(np.float64)
        for value, new in zip(stored, (given.mean(axis=0), given.var(axis=0)), strict=True):
            _set(value, new)
    return model


def _set(value: ir.Value | None, new: Array) -> None:
    """Put new numbers in the place of a constant, in its own type and shape."""
    old = constant(value)
    assert value is not None
    assert old is not None
    value.const_value = ir.tensor(new.reshape(old.shape).astype(old.dtype), name=value.name)
