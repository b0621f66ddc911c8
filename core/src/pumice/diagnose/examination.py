"""The examination: everything that can be said about a quantized model beside its original, in one record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs
import onnx_ir as ir

from pumice.diagnose.advice import recommendations
from pumice.diagnose.coverage import CoverageCurve, calibration_coverage
from pumice.diagnose.layers import LayerError, layer_errors
from pumice.diagnose.remedies import Remedy, output_noise, remedies
from pumice.errors import PumiceError
from pumice.measure.budget import Drift, rows
from pumice.model import clone, nodes, simplify
from pumice.progress import Progress

if TYPE_CHECKING:
    from pumice.data import Dataset
    from pumice.strategy import Runtime

SIMULATED = 4
"""Samples for which a CPU without VNNI is simulated: that is slow."""
_INTEGER = frozenset({"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "QGemm"})


@attrs.frozen(kw_only=True)
class Saturation:
    """What a CPU that adds pairs of 8-bit products in 16 bits makes of the model, by simulation."""

    noise: float
    """Noise-to-signal ratio between the outputs with and without saturation; 0 if nothing saturates."""
    agreement: float
    """Share of decisions that stay the same."""


@attrs.frozen(kw_only=True)
class Diagnosis:
    """Of a compressed model. Layers are worst first."""

    layers: tuple[LayerError, ...]
    noise: float
    """Noise-to-signal ratio at the outputs."""
    coverage: CoverageCurve | None
    without_vnni: Saturation | None
    """None where nothing is computed in integers, or the simulation does not know an operator."""
    remedies: tuple[Remedy, ...]
    advice: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return attrs.asdict(self)

    def sentences(self) -> list[str]:
        """What a person should know, the most important first."""
        found = [f"The noise at the outputs is {self.noise:.3g} of the signal."]
        if self.without_vnni is not None and self.without_vnni.noise > 0:
            kept = self.without_vnni.agreement
            found.append(
                f"On CPUs without VNNI pairs of products saturate: {kept:.1%} of the decisions stay as they are here "
                "(remedy: the target ort-cpu-no-vnni)."
            )
        elif self.without_vnni is not None:
            found.append("On CPUs without VNNI nothing saturates: the answers are the same there.")
        if self.coverage is not None:
            found.append(self.coverage.sentence())
        return [*found, *self.advice, *(f"To try: {remedy.sentence}." for remedy in self.remedies)]


def diagnose(
    original: ir.Model,
    compressed: ir.Model,
    dataset: Dataset,
    runtime: Runtime,
    *,
    progress: Progress | None = None,
    samples: int = 16,
) -> Diagnosis:
    """Examine a compressed model; both models are left unchanged.

    Args:
        original: in floating point.
        compressed: what a quantizer made of it; nodes keep their names.
        dataset: what calibrated it, or data like it.
        runtime: runs both models.
        progress: shows progress.
        samples: how many samples the error of layers is taken over, at most.
    """
    layers = layer_errors(original, compressed, dataset, runtime, progress=progress, samples=samples)
    return Diagnosis(
        layers=tuple(layers),
        noise=output_noise(original, compressed, dataset, runtime),
        coverage=_coverage(original, layers, dataset, runtime),
        without_vnni=_without_vnni(compressed, dataset),
        remedies=tuple(remedies(layers)),
        advice=tuple(recommendations(layers)),
    )


def _coverage(
    original: ir.Model, layers: Sequence[LayerError], dataset: Dataset, runtime: Runtime
) -> CoverageCurve | None:
    reference = clone(original)
    simplify(reference)
    wanted = {layer.node for layer in layers}
    written = (node.outputs for node in reference.graph if node.name in wanted)
    names = [next(value.name for value in outputs if value.name) for outputs in written]
    return calibration_coverage(reference, [name for name in names if name], dataset, runtime, limit=256)


def _without_vnni(compressed: ir.Model, dataset: Dataset) -> Saturation | None:
    if not any(node.op_type in _INTEGER for node in nodes(compressed)):
        return None
    from pumice.quantize.simulated_runtime import SimulatedRuntime

    try:
        exact, saturating = (SimulatedRuntime(pair_saturation=flag).open(clone(compressed)) for flag in (False, True))
        drift = Drift()
        for feeds, _ in rows(dataset, SIMULATED):
            drift.update(exact.run(feeds), saturating.run(feeds))
    except PumiceError:
        return None
    return Saturation(noise=drift.ratio, agreement=drift.agreement)
