"""Quantization-aware training: the rounding is in the graph while the weights learn to live with it.

Post-training quantization says where integers are and gives the first scales. Then the model is trained as

    w' = s_w clip(round(w / s_w), low, high)        x' = s_x (clip(round(x / s_x) + z, 0, 255) - z)

with real w. Gradients pass straight through the rounding, and stop where a value saturates; those of the scales follow
(LSQ, Esser et al., ICLR 2020), which are trained through their logarithms: they stay positive, and a step changes them
in proportion. The integers of the result are those that the last training graph computed, so nothing is lost on the way
to the file. Normalisations are folded into their layers before the training.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import attrs

from pumice import Choice, Float, Int, Loss, Need, Quantizer, Use, hookimpl, knob

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.quantize.context import QuantizeContext

OLDEST_OPSET = {8: 13, 4: 21}
"""Scales per channel, and integers of four bits, came with these."""


@attrs.frozen(kw_only=True)
class Qat(Quantizer):
    """Weights and activations as integers, trained to be."""

    name = "qat"
    needs = frozenset({Need.CALIBRATION, Need.LABELS, Need.GRADIENTS, Need.TRAINING})

    weight_bits: int = knob(8, Choice(8, 4), help="bits of a weight; activations have eight")
    scales: str = knob("learned", Choice("learned", "fixed"), help="whether the scales are trained with the weights")
    warmup: int = knob(1, Int(0, 100_000), help="epochs after which fixed scales are measured once more, and freeze")
    loss: Loss | None = knob(None, Use("loss"), help="what to minimise; chosen by the labels if left open")
    epochs: int = knob(3, Int(1, 100_000), help="passes over the training data")
    batch: int = knob(64, Int(1, 1_000_000, log=True), help="samples in a step")
    lr: float = knob(2e-4, Float(1e-9, 1.0, log=True), help="learning rate at its highest")
    smallest: int = knob(64, Int(1, 1_000_000), help="layers with fewer weights stay in floating point")

    def accepts(self, model: ir.Model) -> str | None:
        from pumice.quantize.placement import already_quantized

        opset, oldest = model.opset_imports.get("", 0), OLDEST_OPSET[self.weight_bits]
        if opset < oldest:
            return (
                f"its opset is {opset}, and weights of {self.weight_bits} bits need {oldest}: read it with pumice.load"
            )
        return already_quantized(model)

    def quantize(self, model: ir.Model, context: QuantizeContext) -> ir.Model:
        from pumice_quant_qat.training import trained

        return trained(self, model, context)


@hookimpl
def pumice_quantizers() -> Iterator[type[Quantizer]]:
    yield Qat
