"""Sensitivity: the noise-to-signal ratio at the outputs when one layer alone has a format.

To first order the outputs move by J e, with e what the format does to the weights of the layer and J the Jacobian of
the outputs in units of their signal; one backward pass serves all layers and all formats (`output_gradients`):

    noise[l, f] = mean over passes of (g[l] . e[l, f])^2

What also rounds activations is measured: the layer alone is quantized, and both models run on a few samples. So is what
a format saves of the time of an inference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import numpy as np
import onnx_ir as ir

from pumice.ledger import Ledger
from pumice.measure import interleaved_latency
from pumice.measure.budget import Drift
from pumice.model import clone
from pumice.progress import unshown
from pumice.quantize.context import QuantizeContext
from pumice.quantize.output_gradients import output_gradients
from pumice.quantize.weight_matrices import WeightMatrix
from pumice_quant_mixed.formats import apply_formats, given_to, rounded_to

Noise = dict[tuple[str, str], float]
"""By node and format."""
Cost = dict[tuple[str, str], float]
"""The same: bytes or milliseconds."""
TIMED = 0.2
"""Seconds that a model is timed for."""
MEASURED = 8
"""Samples on which layers are measured one by one."""


def by_gradient(
    model: ir.Model, layers: Mapping[str, Sequence[WeightMatrix]], formats: Sequence[str], context: QuantizeContext
) -> Noise:
    """For formats that change weights alone.

    Raises:
        UnsupportedOp: an operator between the weights and the outputs has no gradient.
    """
    errors = {
        (name, chosen): [(m, m.restored(rounded_to(chosen, m, m.rows()) - m.rows())) for m in matrices]
        for name, matrices in layers.items()
        for chosen in formats
    }
    names = (str(m.value.name) for matrices in layers.values() for m in matrices)
    totals, count = dict.fromkeys(errors, 0.0), 0
    for gradients in output_gradients(model, names, context):
        for key, parts in errors.items():
            totals[key] += sum(float(np.vdot(gradients[str(m.value.name)], error)) for m, error in parts) ** 2
        count += 1
    return {key: total / count for key, total in totals.items()}


def by_weights(layers: Mapping[str, Sequence[WeightMatrix]], formats: Sequence[str]) -> Noise:
    """For models that answer with whole numbers: noise relative to the weights of the layer, all layers alike."""
    found = {}
    for name, matrices in layers.items():
        power = max(sum(float(np.square(m.rows()).sum()) for m in matrices), 1e-30)
        for chosen in formats:
            lost = sum(float(np.square(rounded_to(chosen, m, m.rows()) - m.rows()).sum()) for m in matrices)
            found[name, chosen] = lost / power
    return found


def by_measurement(
    model: ir.Model,
    layers: Mapping[str, Sequence[WeightMatrix]],
    formats: Sequence[str],
    context: QuantizeContext,
    smallest: int,
) -> Noise:
    """For any format: each layer alone, one after the other."""
    original = context.runtime.open(clone(model))
    samples = [(feeds, original.run(feeds)) for feeds in context.feeds(MEASURED)]
    found = {}
    with context.progress.task("sensitivity", len(layers) * len(formats)) as advance:
        for name, matrices in layers.items():
            for chosen in formats:
                around = attrs.evolve(context, ledger=Ledger(), progress=unshown(context.progress), draft=True)
                changed = apply_formats(model, given_to(chosen, matrices), around, smallest=smallest)
                session, drift = context.runtime.open(clone(changed)), Drift()
                for feeds, exact in samples:
                    drift.update(exact, session.run(feeds))
                found[name, chosen] = drift.ratio
                advance()
    return found


def by_stopwatch(
    model: ir.Model,
    layers: Mapping[str, Sequence[WeightMatrix]],
    formats: Sequence[str],
    context: QuantizeContext,
    smallest: int,
) -> tuple[Cost, float]:
    """How many milliseconds an inference takes longer with each layer alone in a format, and how many without."""
    changes, wholes = {}, []
    with context.progress.task("latency", max(len(layers) * len(formats), 1)) as advance:
        for name, matrices in layers.items():
            for chosen in formats:
                around = attrs.evolve(context, ledger=Ledger(), progress=unshown(context.progress), draft=True)
                changed = apply_formats(model, given_to(chosen, matrices), around, smallest=smallest)
                ours, original = stopwatch(model, changed, context)
                changes[name, chosen] = ours - original
                wholes.append(original)
                advance()
    return changes, float(np.median(wholes)) if wholes else stopwatch(model, model, context)[1]


def stopwatch(model: ir.Model, changed: ir.Model, context: QuantizeContext) -> tuple[float, float]:
    """Milliseconds of one inference, of the changed model and of the original, taking turns."""
    feeds = next(iter(context.feeds(1)))
    sessions = {what: context.runtime.open(clone(m), threads=1) for what, m in (("ours", changed), ("original", model))}
    calls = {what: lambda session=session: session.run(feeds) for what, session in sessions.items()}
    found = interleaved_latency(calls, seconds=TIMED, warmup=TIMED / 4)
    return found["ours"].median, found["original"].median
