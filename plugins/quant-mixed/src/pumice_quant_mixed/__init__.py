"""Mixed precision: every layer gets the format that the accuracy budget allows, chosen for all layers at once.

    min  sum cost[l, f] x[l, f]      with  sum noise[l, f] x[l, f] <= B,   sum_f x[l, f] = 1,   x in {0, 1}

The noise of a format in a layer is what it does to the outputs, relative to their signal: by one backward pass a sample
for formats that change weights alone, and by measurement for 8-bit computation. The programme is solved exactly for a
range of B; what costs least and keeps the budget when it is measured, on data put aside for that, is the result. With a
size or a latency budget instead, it is the most exact that keeps this one. A cost is bytes, milliseconds measured
with one layer changed, or bytes and work together.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import TYPE_CHECKING

import attrs

from pumice import Choice, Float, Int, Need, Quantizer, hookimpl, knob

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.quantize.context import QuantizeContext
    from pumice_quant_mixed.verification import Parts

FORMATS = ("int4", "uint8", "int8", "float16", "float32")


@attrs.frozen(kw_only=True)
class Mixed(Quantizer):
    """A format for every layer, from 4-bit weights to float32, chosen exactly under a budget and verified."""

    name = "mixed"
    needs = frozenset({Need.CALIBRATION})
    chooses = True
    goals = MappingProxyType({"balanced": {"minimise": "both"}, "latency": {"minimise": "latency"}})

    formats: tuple[str, ...] = knob(
        FORMATS, help="what layers may become: int4, uint8, int8, float16, bfloat16, float32"
    )
    budget: str = knob(
        "accuracy",
        Choice("accuracy", "size", "latency"),
        help="accuracy: max_drop of the step; size, latency: the knob of that name",
    )
    minimise: str = knob(
        "bytes",
        Choice("bytes", "latency", "both"),
        help="what is to be least within an accuracy budget; both: bytes times work, where integers count half",
        when=lambda q: q.budget == "accuracy",
    )
    size: float = knob(
        0.2,
        Float(0.05, 1.0),
        help="bytes of weights to use, as a share of those there are",
        when=lambda q: q.budget == "size",
    )
    latency: float = knob(
        0.5,
        Float(0.05, 1.0),
        help="milliseconds of an inference to use, as a share of the original's",
        when=lambda q: q.budget == "latency",
    )
    sensitivity: str = knob(
        "gradient", Choice("gradient", "measured"), help="how the noise of formats that change weights alone is found"
    )
    smallest: int = knob(64, Int(1, 1_000_000), help="matrices with fewer weights stay in floating point")

    def accepts(self, model: ir.Model) -> str | None:
        from pumice.quantize.weight_only import refusal
        from pumice_quant_mixed.formats import unknown

        return unknown(self.formats) or refusal(model)

    def quantize(self, model: ir.Model, context: QuantizeContext) -> ir.Model:
        from pumice_quant_mixed.choice import chosen_formats
        from pumice_quant_mixed.formats import apply_formats

        parts = self._parts(context)
        around = context if parts is None else attrs.evolve(context, calibration=parts.fitted)
        plan = chosen_formats(model, self, around, parts)
        return apply_formats(model, plan, around, smallest=self.smallest)

    def _parts(self, context: QuantizeContext) -> Parts | None:
        """The calibration data in two, where a part of it is to judge the accuracy by."""
        from pumice_quant_mixed.verification import Parts

        if self.budget != "accuracy" or context.calibration is None:
            return None
        return Parts.of(context.calibration)

    @property
    def counts_both(self) -> bool:
        """Whether a format costs bytes and work."""
        return self.budget == "accuracy" and self.minimise == "both"

    @property
    def counts_milliseconds(self) -> bool:
        """Whether a format costs time, else bytes."""
        return self.budget == "latency" or (self.budget == "accuracy" and self.minimise == "latency")


@hookimpl
def pumice_quantizers() -> Iterator[type[Quantizer]]:
    yield Mixed
