"""Weight clustering: every weight is one of a few values that the layer's weights chose themselves.

    w' = t[q] s,   q in 0 .. T - 1,   t = k-means of the weights (Han et al., Deep Compression, ICLR 2016)

A codebook of 16 values spends its four bits where the weights are. It may be one for the tensor, one for the tensor
with a scale an output, one an output, or one a group of inputs; by itself, each tensor gets what lowers the noise of
the network's outputs most while tables, scales and the wider codes of a few tensors stay within a share of the codes'
bytes. The codes are the nearest ones, or those that keep the layer's output (GPTQ on the codebook); centroids are then
fitted to that output as well, and may be fine-tuned to the network's by the gradients of their members. The runtime
`native` multiplies by codes and tables; one without such kernels looks the weights up once, when it loads the model:
the file is then an eighth, memory and speed are those of the original.
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
class KMeans(Quantizer):
    """Weights as indices into a codebook found by k-means; layers compute in floating point."""

    name = "kmeans"
    needs = frozenset({Need.CALIBRATION})

    centroids: int = knob(16, Choice(4, 8, 16, 32, 64, 128, 256), help="values a weight may have; up to 16 take 4 bits")
    codebook: str = knob(
        "auto",
        Choice("auto", "tensor", "scaled", "channel", "group"),
        help="what shares a codebook: the tensor, the tensor but for a scale an output, an output, a group of inputs;"
        " auto: one of the first three for each tensor, or codes of 8 bits, as `overhead` allows",
    )
    overhead: float = knob(
        0.06,
        Float(0.0, 1.0),
        help="bytes that tables, scales and wider codes may take, as a share of those of the codes",
        when=lambda q: q.codebook == "auto",
    )
    group: int = knob(128, Int(8, 4096), help="inputs of a group", when=lambda q: q.codebook == "group")
    start: str = knob("plus-plus", Choice("plus-plus", "linear", "exact"), help="first centroids; exact is the optimum")
    weighting: str = knob(
        "fisher",
        Choice("none", "activation", "fisher"),
        help="what an error of a weight counts: alike, by what it does to the output of its layer, or to those of the"
        " network (Fisher)",
    )
    rounding: str = knob("compensated", Choice("compensated", "nearest"), help="how weights are assigned")
    refit: bool = knob(True, help="fit the centroids to the layer's output once the codes are known")
    tune: int = knob(0, Int(0, 100_000), help="steps of gradient descent on the centroids, codes fixed; 0 takes none")
    table: str = knob("int8", Choice("float32", "bfloat16", "int8"), help="type of the centroids and of the scales")
    smallest: int = knob(64, Int(1, 1_000_000), help="matrices with fewer weights stay in floating point")

    def accepts(self, model: ir.Model) -> str | None:
        from pumice.quantize.weight_only import refusal

        return refusal(model)

    def quantize(self, model: ir.Model, context: QuantizeContext) -> ir.Model:
        from pumice.quantize.weight_only import store_weights
        from pumice_quant_kmeans.scheme import CodebookScheme

        scheme = CodebookScheme.informed(self, model, context)
        changed = store_weights(model, scheme, context, smallest=self.smallest)
        if self.tune and not context.draft:
            from pumice_quant_kmeans.tuning import tune

            context.notes.append(tune(model, changed, context, self.tune))
        if not context.draft:
            context.notes.extend(scheme.notes())
        return changed


@attrs.frozen(kw_only=True)
class Coded(Quantizer):
    """8-bit integers, stored as 4-bit codes where the accuracy allows; layers compute in integers."""

    name = "coded"
    needs = frozenset({Need.CALIBRATION})
    chooses = True

    share: float = knob(
        0.65,
        Float(0.05, 1.0),
        help="share of what may be lost that integers and codes may lose on the calibration data",
    )
    smallest: int = knob(64, Int(1, 1_000_000), help="layers with fewer weights stay in floating point")

    def accepts(self, model: ir.Model) -> str | None:
        from pumice.quantize.weight_only import refusal

        return refusal(model)

    def quantize(self, model: ir.Model, context: QuantizeContext) -> ir.Model:
        from pumice_quant_kmeans.coded import coded

        return coded(model, self, context)


@hookimpl
def pumice_quantizers() -> Iterator[type[Quantizer]]:
    yield KMeans
    yield Coded
