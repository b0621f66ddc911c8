"""Affine weights of few bits: every block of consecutive inputs of an output has a scale (and a zero point).

    w' = (q - z) s,  q in [0, 2^bits),  64 inputs to a block or so

The scales come from the extremes of the block (`minmax`), from the range that loses least of the layer's output
(`clipped`: less is cut where inputs are loud), or from half-quadratic splitting (`hqq`), which fits scale and zero
point to the bulk and lets outliers go. The integers are the nearest ones, or those that keep the layer's output (GPTQ).
Layers compute in floating point; onnxruntime fuses matrix products into MatMulNBits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import attrs

from pumice import Choice, Int, Need, Quantizer, hookimpl, knob

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.quantize.context import QuantizeContext

POWERS = (16, 32, 64, 128, 256)
"""Block sizes that runtimes have kernels for; 0 is a whole row."""


@attrs.frozen(kw_only=True)
class Int4(Quantizer):
    """Weights as 4-bit integers with a scale for every block; layers compute in floating point."""

    name = "int4"
    needs = frozenset({Need.CALIBRATION})

    bits: int = knob(4, Int(2, 8), help="bits of a weight; up to four are stored two a byte")
    block: int = knob(64, Choice(0, *POWERS), help="consecutive inputs that share a scale; 0 is all of an output")
    symmetric: bool = knob(False, help="no zero points: smaller, and less accurate")
    scales: str = knob("clipped", Choice("minmax", "clipped", "hqq"), help="how the scale of a block is chosen")
    rounding: str = knob("compensated", Choice("compensated", "nearest"), help="how weights are rounded")
    form: str = knob(
        "auto",
        Choice("auto", "dequantize", "nbits"),
        help="how weights are widened: dequantize (DequantizeLinear alone), nbits (MatMulNBits for matrix products), "
        "auto (DequantizeLinear for matrix products, what runtimes fold for the rest)",
    )
    smallest: int = knob(64, Int(1, 1_000_000), help="matrices with fewer weights stay in floating point")

    def accepts(self, model: ir.Model) -> str | None:
        from pumice.quantize.weight_only import refusal

        return refusal(model)

    def quantize(self, model: ir.Model, context: QuantizeContext) -> ir.Model:
        from pumice.quantize.weight_only import store_weights
        from pumice_quant_int4.scheme import AffineScheme

        return store_weights(model, AffineScheme(self), context, smallest=self.smallest)


@hookimpl
def pumice_quantizers() -> Iterator[type[Quantizer]]:
    yield Int4
