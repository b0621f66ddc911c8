"""INT8 post-training quantization: 8-bit weights and activations, calibrated on data, without training.

    y = (s_x * s_w) * sum((q_x - z_x) * q_w) + b,    q = saturate(round_half_even(x / s) + z)

Layers whose neighbours are integers too (convolutions) get ranges fixed by calibration; layers between floating-point
operators (the projections of a transformer) have theirs found while the model runs, at the same speed and without
clipping what calibration never saw; so have LSTMs, whose state would drift otherwise. Weights are symmetric per output
channel, rounded so that the layer's *output* stays close (GPTQ), channel ranges are evened out across layers, and the
bias takes up the mean error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import attrs

from pumice import Choice, Float, Int, Need, Quantizer, hookimpl, knob

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.quantize.context import QuantizeContext
    from pumice.quantize.engine import Scheme
    from pumice.quantize.recurrent import Recurrent
    from pumice.quantize.target import Mode, Target

MODES: Mapping[str, tuple[Mode, ...]] = MappingProxyType(
    {"auto": ("dynamic", "static"), "static": ("static",), "dynamic": ("dynamic",), "weights": ()}
)
"""Ways of computing with integers that each choice allows; a layer without any has its weights stored as integers."""

RECURRENT: Mapping[str, Recurrent] = MappingProxyType({"kernel": "kernel", "all": "stored", "none": "none"})
"""Which recurrent layers each choice quantizes."""

OLDEST_OPSET = 13
"""Scales per channel came with it."""


@attrs.frozen(kw_only=True)
class Int8(Quantizer):
    """8-bit integers for weights and activations, calibrated on data."""

    name = "int8"
    needs = frozenset({Need.CALIBRATION})

    activations: str = knob(
        "auto",
        Choice(*MODES),
        help="where ranges come from: static (calibration), dynamic (while running), auto (per layer), weights (none)",
    )
    calibrator: str = knob(
        "minmax",
        Choice("minmax", "moving-average", "percentile", "entropy", "mse"),
        help="how a range is chosen from what calibration saw",
    )
    percentile: float = knob(
        99.99, Float(90.0, 100.0), help="share of the values kept", when=lambda q: q.calibrator == "percentile"
    )
    symmetric: str = knob("target", Choice("target", "yes", "no"), help="activation ranges symmetric around zero")
    per_channel: str = knob("target", Choice("target", "yes", "no"), help="one weight scale per output channel")
    rounding: str = knob("compensated", Choice("compensated", "nearest"), help="how weights are rounded")
    equalize: bool = knob(True, help="even out channel ranges across layers (cross-layer equalisation)")
    correct_bias: bool = knob(True, help="let the bias take up the mean rounding error")
    recurrent: str = knob(
        "kernel",
        Choice(*RECURRENT),
        help="recurrent layers: those that the target has an integer kernel for (ranges are found while they run), all "
        "(the others store 8-bit weights), none",
    )
    smallest: int = knob(64, Int(1, 1_000_000), help="layers with fewer weights stay in floating point")

    def accepts(self, model: ir.Model) -> str | None:
        from pumice.quantize.placement import already_quantized

        opset = model.opset_imports.get("", OLDEST_OPSET)
        if opset < OLDEST_OPSET:
            return f"its opset is {opset}, and scales per channel need {OLDEST_OPSET}: read it with pumice.load"
        return already_quantized(model)

    def quantize(self, model: ir.Model, context: QuantizeContext) -> ir.Model:
        from pumice.quantize.engine import quantize_layers

        target = self._target(context.target)
        return quantize_layers(model, self._scheme(target), attrs.evolve(context, target=target))

    def _target(self, target: Target) -> Target:
        def pick(answer: str, *, default: bool) -> bool:
            return default if answer == "target" else answer == "yes"

        return attrs.evolve(
            target,
            activation_symmetric=pick(self.symmetric, default=target.activation_symmetric),
            per_channel=pick(self.per_channel, default=target.per_channel),
        )

    def _scheme(self, target: Target) -> Scheme:
        from pumice.quantize.calibration import Calibrator
        from pumice.quantize.engine import Scheme

        return Scheme(
            calibrator=Calibrator(
                method=self.calibrator, percentile=self.percentile, symmetric=target.activation_symmetric
            ),
            modes=MODES[self.activations],
            equalize=self.equalize,
            compensate=self.rounding == "compensated",
            correct_bias=self.correct_bias,
            recurrent=RECURRENT[self.recurrent],
            smallest=self.smallest,
        )


@hookimpl
def pumice_quantizers() -> Iterator[type[Quantizer]]:
    yield Int8
