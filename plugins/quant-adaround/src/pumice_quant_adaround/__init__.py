"""Learned rounding: each weight goes up or down so that what its layer computes stays close (Nagel et al., ICML 2020).

    w' = s (clip(floor(w / s) + h(v), low, high) - z),   h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1)

    min over v of |f(x; w) - f(x'; w')|^2 + lambda sum (1 - |2 h(v) - 1|^beta)

f is the layer with the activation after it, x what it reads in the original, x' what it reads in the model quantized so
far: later layers make up for earlier ones. The second term, whose beta falls, drives every h to 0 or 1. No labels, any
number of bits, any layer that has a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import attrs

from pumice import Choice, Float, Int, Need, Quantizer, hookimpl, knob

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.quantize.context import QuantizeContext


@attrs.frozen(kw_only=True)
class AdaRound(Quantizer):
    """Weights of few bits whose rounding is learned, layer by layer, without labels."""

    name = "adaround"
    needs = frozenset({Need.CALIBRATION, Need.GRADIENTS})

    bits: int = knob(4, Int(2, 8), help="bits of a weight; up to four are stored two a byte")
    block: int = knob(64, Choice(0, 16, 32, 64, 128, 256), help="consecutive inputs that share a scale; 0 is an output")
    symmetric: bool = knob(False, help="no zero points: smaller, and less accurate")
    steps: int = knob(400, Int(1, 100_000, log=True), help="gradient steps a layer")
    rate: float = knob(0.03, Float(1e-5, 1.0, log=True), help="learning rate (Adam)")
    batch: int = knob(16, Int(1, 1024), help="samples in a step, where they can be joined")
    regularisation: float = knob(1.0, Float(0.0, 10.0), help="weight of the term that makes up minds")
    samples: int = knob(64, Int(1, 100_000), help="calibration samples to learn from at most")
    smallest: int = knob(64, Int(1, 1_000_000), help="matrices with fewer weights stay in floating point")

    def accepts(self, model: ir.Model) -> str | None:
        from pumice.quantize.weight_only import refusal

        return refusal(model)

    def quantize(self, model: ir.Model, context: QuantizeContext) -> ir.Model:
        from pumice.quantize.weight_only import store_weights
        from pumice_quant_adaround.reconstruction import LearnedScheme

        scheme = LearnedScheme.learned(model, self, context)
        return store_weights(model, scheme, context, smallest=self.smallest)


@hookimpl
def pumice_quantizers() -> Iterator[type[Quantizer]]:
    yield AdaRound
