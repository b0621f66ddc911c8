"""Remedies: what would make a quantized model better, each with its expected gain, and trying them.

Errors of layers add up at the outputs about as their noise-to-signal ratios alone do, so returning a layer to floating
point is expected to take away its share of their sum. That is a rule of thumb for ranking; `tried` measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import onnx_ir as ir

from pumice.diagnose.advice import LOW_COVERAGE, MANY_OUTLIERS, POOR_WEIGHTS_DB
from pumice.errors import PumiceError
from pumice.measure.budget import JUDGED, Drift, rows
from pumice.model import clone

if TYPE_CHECKING:
    from pumice.data import Dataset
    from pumice.diagnose.layers import LayerError
    from pumice.strategy import Runtime

RETURNED = (1, 3)
"""Numbers of layers that are suggested for floating point, where these are no more than half."""


@attrs.frozen(kw_only=True)
class Remedy:
    """A change of the `quantize` step."""

    sentence: str
    step: Mapping[str, Any]
    """Knobs of the step; those under `quantizer` are knobs of its quantizer."""
    expected: float | None
    """Share of the noise at the outputs that is expected to go; None where there is no estimate."""


@attrs.frozen(kw_only=True, eq=False)
class Trial:
    """A remedy, measured."""

    remedy: Remedy
    noise: float
    """Noise-to-signal ratio at the outputs; infinite if it could not be tried."""
    model: ir.Model | None
    failure: str = ""


DEFAULTS = Remedy(sentence="quantize anew with every knob at its default", step={}, expected=None)
"""Tried beside the others, which start from it: what they are worth is what they add."""


def remedies(layers: Sequence[LayerError]) -> list[Remedy]:
    """What might help, the largest expected gain first."""
    noise = {e.node: 10 ** (-e.alone_sqnr_db / 10) for e in layers if e.alone_sqnr_db is not None}
    total = sum(noise.values())
    found = []
    for count in RETURNED:
        worst = sorted(noise, key=lambda node: (-noise[node], node))[:count]
        if 2 * count <= len(noise) and total:
            shown = ", ".join(f"'{node}'" for node in worst)
            share = sum(noise[node] for node in worst) / total
            sentence = f"return {shown} to floating point (knob exclude), which makes about {share:.0%} of the noise"
            found.append(Remedy(sentence=sentence, step={"exclude": tuple(worst)}, expected=share))
    found += _of_calibration(layers)
    return sorted(found, key=lambda remedy: -round(remedy.expected or 0.0, 2))  # of equals, the one with fewer layers


def _of_calibration(layers: Sequence[LayerError]) -> list[Remedy]:
    found = []
    clipped = [e for e in layers if e.coverage is not None and e.coverage < LOW_COVERAGE]
    wide = [e for e in layers if e.outliers_3sigma is not None and e.outliers_3sigma > MANY_OUTLIERS]
    poor = [e for e in layers if e.weight_sqnr_db is not None and e.weight_sqnr_db < POOR_WEIGHTS_DB]
    if clipped:
        sentence = f"cover all that calibration saw (knob calibrator = minmax): '{clipped[0].node}' and others clip"
        found.append(Remedy(sentence=sentence, step={"quantizer": {"calibrator": "minmax"}}, expected=None))
    if wide:
        sentence = f"clip outliers (knob calibrator = mse): those of '{wide[0].node}' and others stretch their ranges"
        found.append(Remedy(sentence=sentence, step={"quantizer": {"calibrator": "mse"}}, expected=None))
    if poor:
        sentence = f"one scale a channel (knob per_channel = yes): the weights of '{poor[0].node}' are coarse"
        found.append(Remedy(sentence=sentence, step={"quantizer": {"per_channel": "yes"}}, expected=None))
    return found


def output_noise(original: ir.Model, changed: ir.Model, dataset: Dataset, runtime: Runtime) -> float:
    """Noise-to-signal ratio of the outputs."""
    before, after, drift = runtime.open(clone(original)), runtime.open(clone(changed)), Drift()
    for feeds, _ in rows(dataset, JUDGED):
        drift.update(before.run(feeds), after.run(feeds))
    return drift.ratio


def tried(
    original: ir.Model, remedies: Sequence[Remedy], dataset: Dataset, runtime: Runtime, quantizer: str
) -> list[Trial]:
    """Each remedy, and none, applied to the original anew with the quantizer and its defaults; the best first."""
    from pumice.pipeline import compress

    trials = []
    for remedy in (DEFAULTS, *remedies):
        step = {"use": "quantize", "max_drop": 1.0, **remedy.step}
        step["quantizer"] = {"name": quantizer, **remedy.step.get("quantizer", {})}
        try:
            result = compress(original, dataset, {"step": [step]}, runtime=runtime, measure=False)
        except PumiceError as error:
            trials.append(Trial(remedy=remedy, noise=float("inf"), model=None, failure=str(error)))
        else:
            noise = output_noise(original, result.model, dataset, runtime)
            trials.append(Trial(remedy=remedy, noise=noise, model=result.model))
    return sorted(trials, key=lambda trial: trial.noise)
