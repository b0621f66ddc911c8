"""Advice: what per-layer errors suggest doing, in sentences that name the nodes and the knobs.

The thresholds are rules of thumb stated once: 20 dB is about three and a half good bits, below which a layer usually
costs accuracy; well-behaved 8-bit layers lie between 25 and 45 dB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pumice.diagnose.layers import LayerError

POOR_DB = 20.0
POOR_WEIGHTS_DB = 28.0
LOW_COVERAGE = 0.995
MANY_OUTLIERS = 0.02
DROP_DB = 6.0


def recommendations(layers: Sequence[LayerError]) -> list[str]:
    """Sentences, the most useful first; empty when nothing is to be done. `layers` in any order."""
    finders = (_poor_weights, _poor_outputs, _clipped, _outliers)
    return [sentence for finder in finders if (sentence := finder(layers))]


def _poor_weights(layers: Sequence[LayerError]) -> str:
    poor = [layer for layer in layers if layer.weight_sqnr_db is not None and layer.weight_sqnr_db < POOR_WEIGHTS_DB]
    if not poor:
        return ""
    return (
        f"The weights of {_names(poor)} keep less than {POOR_WEIGHTS_DB:g} dB of precision: one scale per channel, "
        f"more bits, or leaving them in floating point ({_exclude(poor)}) would help."
    )


def _poor_outputs(layers: Sequence[LayerError]) -> str:
    """Layers that are poor although their own weights are fine: activations or accumulated error."""
    poor = [
        layer
        for layer in layers
        if layer.output_sqnr_db is not None
        and layer.output_sqnr_db < POOR_DB
        and (layer.weight_sqnr_db is None or layer.weight_sqnr_db >= POOR_WEIGHTS_DB)
    ]
    if not poor:
        return ""
    return (
        f"The outputs of {_names(poor)} are below {POOR_DB:g} dB although their weights are fine: the error comes from "
        f"activations; try another calibrator, more calibration samples, or {_exclude(poor)}."
    )


def _clipped(layers: Sequence[LayerError]) -> str:
    clipped = [layer for layer in layers if layer.coverage is not None and layer.coverage < LOW_COVERAGE]
    if not clipped:
        return ""
    least = min(layer.coverage for layer in clipped if layer.coverage is not None)
    return (
        f"Part of the values of {_names(clipped)} lies outside the calibrated range (down to {least:.1%} inside): "
        "calibrate with more, or more typical, samples, or with the minmax calibrator."
    )


def _outliers(layers: Sequence[LayerError]) -> str:
    wide = [
        layer
        for layer in layers
        if layer.outliers_3sigma is not None
        and layer.outliers_3sigma > MANY_OUTLIERS
        and layer.output_sqnr_db is not None
        and layer.output_sqnr_db < POOR_DB + DROP_DB
    ]
    if not wide:
        return ""
    return (
        f"Many values of {_names(wide)} lie beyond three standard deviations and stretch the range: a calibrator that "
        "clips (percentile, entropy, mse) spends the integers on the rest."
    )


def _names(layers: Sequence[LayerError]) -> str:
    shown = ", ".join(f"'{layer.node}'" for layer in layers[:3])
    more = len(layers) - 3
    return f"{shown} and {more} more" if more > 0 else shown


def _exclude(layers: Sequence[LayerError]) -> str:
    return f"--exclude '{','.join(layer.node for layer in layers[:3])}'"
