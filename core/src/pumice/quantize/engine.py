"""The engine: from a floating-point model and calibration data to integers, one pass at a time.

    1  placement             which layers, which values           (no data)
    2  channel statistics    ranges of every value, per channel   (first pass over the data)
    3  channel factors       share the ranges out                 (no data)
    4  ranges                calibrator -> scale and zero point   (second pass, for calibrators that need histograms)
    5  rounding              what the layers really see; integers (third pass; more where memory is short)
    6  rewriting             Q/DQ nodes; recurrent layers, which have ranges of their own (one pass)
    7  bias correction       the means of what every layer writes (two passes, if it pays)

What was seen of the data is kept by name in a `Memory`, so that the accuracy guard can try again with fewer layers
without streaming the data anew. A draft, by which the guard only compares layers, rounds to the nearest integer.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from pumice.errors import ModelError
from pumice.model import clone, nodes
from pumice.quantize.account import account_for_layers, account_for_the_rest
from pumice.quantize.bias_correction import correct_biases
from pumice.quantize.calibration import Calibrator, Range
from pumice.quantize.channel_scaling import Rescaling, channel_factors, dynamic_factors
from pumice.quantize.compensation import Levels
from pumice.quantize.context import QuantizeContext
from pumice.quantize.hard_swish import hard_swishes_between_integers
from pumice.quantize.observation import Memory, observe_channels, observe_histograms, readings
from pumice.quantize.parameters import QuantParams, affine
from pumice.quantize.placement import Layer, Placement, clip_bounds, find_layers, place
from pumice.quantize.recurrent import Recurrent, place_recurrent, quantize_recurrent
from pumice.quantize.rewrite import QuantizedWeights, rewrite
from pumice.quantize.rounding import Rounder
from pumice.quantize.target import Mode

_AS_IT_IS = Rescaling(np.ones(1))


@attrs.frozen(kw_only=True)
class Scheme:
    """How integers are chosen; every field is somebody's knob."""

    calibrator: Calibrator = attrs.field(factory=Calibrator)
    modes: tuple[Mode, ...] = ("dynamic", "static")
    """Modes allowed: a layer takes the first that its target prefers among these, else only its weights are stored."""
    equalize: bool = True
    compensate: bool = True
    correct_bias: bool = True
    recurrent: Recurrent = "none"
    smallest: int = 64
    levels: Mapping[str, Levels] = attrs.field(factory=dict)
    """Integers that weights may be, by name of their layer; all in others."""


def quantize_layers(model: ir.Model, scheme: Scheme, context: QuantizeContext) -> ir.Model:
    """A quantized copy of the model.

    Args:
        model: in floating point; every node and value has a unique name, as `pumice.model.load` leaves them.
        scheme: how integers are chosen.
        context: the target, the calibration data, the ledger that gets a line for every node; it recalls what earlier
            calls with the same model and scheme learned.

    Raises:
        DataError: there is no calibration data, or a value becomes infinite or NaN on it.
        ModelError: nodes without names of their own.
    """
    _check_names(model)
    memory = context.recall(Memory)
    if context.draft:
        scheme = attrs.evolve(scheme, compensate=False, correct_bias=False)
        memory = attrs.evolve(memory, weights=context.recall(_Drafts))
    target, changed = context.target, clone(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(changed)
    layers = find_layers(
        changed,
        target,
        context.ledger,
        excluded=context.excluded,
        choose_mode=lambda modes: next((mode for mode in modes if mode in scheme.modes), "weight-only"),
        smallest=scheme.smallest,
    )
    placement = place(changed, target, layers, context.excluded)
    observe_channels(model, placement, context, memory)
    scales = target.channel_scales if scheme.equalize else "none"
    factors = channel_factors(placement, memory.channels, scales)
    running = dynamic_factors(placement.layers, memory.running) if scales == "everywhere" else {}
    parameters = _parameters(model, placement, factors, scheme, context, memory)
    rounder = Rounder(
        model=model,
        context=context,
        memory=memory,
        compensate=scheme.compensate,
        correct_bias=scheme.correct_bias,
        levels=scheme.levels,
    )
    seen = readings(placement, parameters, factors, running)
    writing = _writing(placement, factors)
    weights = rounder.weights(seen, writing)
    account_for_layers(seen, weights, target, context.ledger)
    swishes: frozenset[ir.Node] = frozenset()
    if target.hard_swish:
        swishes = hard_swishes_between_integers(changed, placement, parameters, factors, context.excluded)
    forms = place_recurrent(changed, scheme.recurrent, scheme.modes, context, smallest=scheme.smallest)
    account_for_the_rest(changed, placement, swishes, context)
    biases = rewrite(
        changed,
        placement,
        parameters,
        weights,
        factors,
        running,
        swishes=swishes,
        integer_bias=target.bias == "int32",
    )
    if forms:
        quantize_recurrent(model, changed, forms, context, compensate=scheme.compensate)
    if scheme.correct_bias:
        correct_biases(model, changed, biases, writing, context)
    return changed


class _Drafts(dict[tuple[str, bytes], QuantizedWeights]):
    """Weights of drafts, apart from those of the real thing."""


def _check_names(model: ir.Model) -> None:
    names = [node.name or "" for node in nodes(model)]
    if "" in names or len(set(names)) < len(names):
        raise ModelError("the nodes of the model have no unique names: read it with pumice.load")


def _parameters(
    model: ir.Model,
    placement: Placement,
    factors: Mapping[int, Rescaling],
    scheme: Scheme,
    context: QuantizeContext,
    memory: Memory,
) -> dict[int, QuantParams]:
    """Scale and zero point of every space, for the values as they will be stored."""
    if scheme.calibrator.method == "minmax":
        ranges = _extremes(placement, factors, memory)
    else:
        statistics = observe_histograms(model, placement, factors, context, memory)
        ranges = {number: scheme.calibrator.range(found) for number, found in statistics.items()}
    found = {}
    for number, values in placement.spaces().items():
        low, high = _clipped(ranges[number], values, placement)
        found[number] = affine(low, high, context.target.activation_type, symmetric=context.target.activation_symmetric)
    return found


def _extremes(placement: Placement, factors: Mapping[int, Rescaling], memory: Memory) -> dict[int, Range]:
    found = {}
    for number, values in placement.spaces().items():
        rescaling = factors.get(number, _AS_IT_IS)
        seen = [memory.channels[v.name or ""] for v in values]
        ends = [rescaling.range(s.low, s.high) for s in seen if s.low is not None and s.high is not None]
        found[number] = (min((low for low, _ in ends), default=0.0), max((high for _, high in ends), default=0.0))
    return found


def _clipped(extremes: Range, values: list[ir.Value], placement: Placement) -> Range:
    """The range cut to the bounds of the activations that vanish into it."""
    low, high = extremes
    activations = set(placement.absorbed.values())
    for value in values:
        producer = value.producer()
        bounds = clip_bounds(producer) if producer is not None and producer in activations else None
        if bounds is not None:
            low, high = max(low, bounds[0]), min(high, bounds[1])
    return low, high


def _writing(placement: Placement, factors: Mapping[int, Rescaling]) -> dict[ir.Node, Rescaling]:
    """How the values that static layers write are stored, where that is not as they are."""
    found = {layer.node: factors.get(_written_space(layer, placement)) for layer in placement.layers}
    return {node: rescaling for node, rescaling in found.items() if rescaling is not None}


def _written_space(layer: Layer, placement: Placement) -> int:
    """The space a static layer writes, -1 if its output stays in floating point."""
    output = layer.node.outputs[0]
    if output in placement.absorbed:
        output = placement.absorbed[output].outputs[0]
    return placement.space_of.get(output, -1) if layer.mode == "static" else -1
