"""Dynamic INT8: weights are integers, the range of what they multiply is found while the model runs.

    MatMul, Gemm    DynamicQuantizeLinear -> MatMulInteger -> times both scales
    LSTM            DynamicQuantizeLSTM: the hidden state gets its range at every step, the cell state stays real
    GRU             weights stored in eight bits, or a Scan of DynamicQuantizeLinear and MatMulInteger
    RNN, Conv       weights stored in eight bits: no runtime computes these faster with ranges found on the way

Nothing is clipped that calibration did not see, and no state drifts: what a recurrent network needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import attrs

from pumice import Choice, Int, Need, Quantizer, hookimpl, knob

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.quantize.context import QuantizeContext
    from pumice.quantize.recurrent import Recurrent

GRUS: Mapping[str, Recurrent] = MappingProxyType({"weights": "stored", "spelt": "spelt"})
"""What becomes of recurrent layers with each choice for those without an integer operator."""


@attrs.frozen(kw_only=True)
class Dynamic(Quantizer):
    """8-bit integers with ranges found while the model runs, recurrent layers included."""

    name = "dynamic"
    needs = frozenset({Need.CALIBRATION})

    equalize: bool = knob(True, help="even out the ranges of input channels, by factors that weights undo")
    rounding: str = knob("compensated", Choice("compensated", "nearest"), help="how weights are rounded")
    recurrent: bool = knob(True, help="recurrent layers too; false leaves them in floating point")
    gru: str = knob(
        "weights",
        Choice(*GRUS),
        help="weights: a GRU stores 8-bit weights and computes in floating point, in integers in the runtime native "
        "(mode fast); spelt: it becomes a Scan of integer operators, for any runtime",
        when=lambda q: q.recurrent,
    )
    smallest: int = knob(64, Int(1, 1_000_000), help="layers with fewer weights stay in floating point")

    def accepts(self, model: ir.Model) -> str | None:
        from pumice.quantize.weight_only import refusal

        return refusal(model)

    def quantize(self, model: ir.Model, context: QuantizeContext) -> ir.Model:
        from pumice.quantize.engine import Scheme, quantize_layers

        scheme = Scheme(
            modes=("dynamic",),
            equalize=self.equalize,
            compensate=self.rounding == "compensated",
            recurrent=GRUS[self.gru] if self.recurrent else "none",
            smallest=self.smallest,
        )
        return quantize_layers(model, scheme, context)


@hookimpl
def pumice_quantizers() -> Iterator[type[Quantizer]]:
    yield Dynamic
