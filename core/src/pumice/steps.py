"""Steps: what a recipe is made of. A step puts one strategy to work on a model, and answers for the result.

Each step is declared like a strategy (attrs-frozen, knobs), so the command line and the recipe read it the same way. A
step gets a model and a `RunContext` and returns a new model; it never changes the one it was given. The pipeline checks
that the ledger shows something applied, and rolls a step back that lost more than its budget.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Self

import attrs

from pumice.errors import ModelError
from pumice.quantize.target import names
from pumice.registry import registry
from pumice.strategy import Choice, Float, Int, Names, Quantizer, Strategy, Use, knob

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.pipeline import RunContext


@attrs.frozen(kw_only=True)
class Step(Strategy):
    """Base of the steps."""

    kind = "step"

    def run(self, model: ir.Model, context: RunContext) -> ir.Model:
        """The model after the step."""
        raise NotImplementedError

    def resolved(self) -> Self:
        """The step with every strategy that was left open filled in, so that the account names what really ran."""
        return self

    def strategies(self) -> list[Strategy]:
        """The strategies it puts to work."""
        return [value for key in self.knobs() if isinstance(value := getattr(self, key), Strategy)]


@attrs.frozen(kw_only=True)
class Quantize(Step):
    """Quantize the model with an installed quantizer, calibrated on data, within an accuracy budget."""

    name = "quantize"
    quantizer: Quantizer | None = knob(None, Use("quantizer"), help="how to quantize; a name or a table with its knobs")
    target: str = knob("ort-cpu", Choice(*names()), help="runtime that the model is made for")
    samples: int = knob(512, Int(1, 1_000_000), help="calibration samples to use at most")
    max_drop: float = knob(0.01, Float(0.0, 1.0), help="accuracy that may be lost, as a fraction (0.01 is one point)")
    exclude: tuple[str, ...] = knob((), Names(), help="nodes to leave in floating point (glob patterns)")

    def resolved(self) -> Self:
        return self if self.quantizer is not None else attrs.evolve(self, quantizer=default_quantizer())

    def run(self, model: ir.Model, context: RunContext) -> ir.Model:
        from pumice.quantize.context import QuantizeContext

        quantizer = self.quantizer or default_quantizer()
        refusal = quantizer.accepts(model)
        if refusal:
            raise ModelError(f"quantizer '{quantizer.name}' cannot work on this model: {refusal}")
        return quantizer.quantize(model, QuantizeContext.of(self, context))


def default_quantizer() -> Quantizer:
    """`int8` if it is installed, else the only or first quantizer there is."""
    known = registry().strategies("quantizer")
    return registry().make(Quantizer, "int8" if "int8" in known or not known else next(iter(known)))


STEPS = MappingProxyType({step.name: step for step in (Quantize,)})
