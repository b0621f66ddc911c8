"""Steps: what a recipe is made of. A step puts one strategy to work on a model, and answers for the result.

Each step is declared like a strategy (attrs-frozen, knobs), so the command line and the recipe read it the same way. A
step gets a model and a `RunContext` and returns a new model; it never changes the one it was given. The pipeline checks
that the ledger shows something applied, and rolls a step back that lost more than its budget.
"""

from __future__ import annotations

import fnmatch
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

import attrs

from pumice.errors import KnobError, ModelError, nearest
from pumice.quantize.target import names
from pumice.registry import registry
from pumice.strategy import (
    Choice,
    Flag,
    Float,
    ImportanceScorer,
    Int,
    Loss,
    Names,
    Need,
    Quantizer,
    Strategy,
    Text,
    Use,
    knob,
)

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
        from pumice.quantize.guard import within_budget

        quantizer = self.quantizer or default_quantizer()
        refusal = quantizer.accepts(model)
        if refusal:
            raise ModelError(f"quantizer '{quantizer.name}' cannot work on this model: {refusal}")
        self._check_patterns(model)
        return within_budget(model, quantizer, QuantizeContext.of(self, context))

    def _check_patterns(self, model: ir.Model) -> None:
        from pumice.model import nodes

        names = [node.name or "" for node in nodes(model)]
        for pattern in self.exclude:
            if not fnmatch.filter(names, pattern):
                hint = nearest(pattern, names)
                raise KnobError(f"step 'quantize': the pattern '{pattern}' of knob 'exclude' matches no node{hint}")


@attrs.frozen(kw_only=True)
class Train(Step):
    """Train the model's weights on labelled data, by gradient descent."""

    name = "train"
    needs = frozenset({Need.GRADIENTS, Need.TRAINING})
    loss: Loss | None = knob(None, Use("loss"), help="what to minimise; chosen by the labels if left open")
    epochs: int = knob(3, Int(1, 1_000_000), help="passes over the data")
    batch: int = knob(64, Int(1, 1_000_000, log=True), help="samples in a step")
    lr: float = knob(1e-3, Float(1e-9, 100.0, log=True), help="learning rate at its highest")
    optimizer: str = knob("adamw", Choice("sgd", "adam", "adamw", "lamb"), help="how gradients move weights")
    momentum: float = knob(0.9, Float(0.0, 0.999), help="share of the past in the direction of a step")
    nesterov: bool = knob(True, Flag(), help="look ahead along the momentum (sgd)")
    weight_decay: float = knob(1e-4, Float(0.0, 1.0), help="pull of matrices and kernels towards zero")
    schedule: str = knob(
        "cosine", Choice("constant", "step", "cosine", "one-cycle"), help="course of the learning rate"
    )
    warmup: float = knob(0.0, Float(0.0, 1.0), help="share of the steps over which the rate rises from zero")
    clip: float = knob(0.0, Float(0.0, 1e9), help="longest gradient, all weights together; 0 is any")
    ema: float = knob(0.0, Float(0.0, 0.99999), help="keep an average of the weights with this memory; 0 keeps none")
    augment: tuple[str, ...] = knob((), Names(), help="changes of pictures at random: flip, crop, cutout, mixup")
    freeze: tuple[str, ...] = knob((), Names(), help="nodes or weights that stay as they are (glob patterns)")
    keep_zeros: bool = knob(True, Flag(), help="elements of kernels that are zero (pruned) stay zero")
    batch_statistics: bool = knob(True, Flag(), help="batch normalisation by the batch; false: by stored statistics")
    statistics: int = knob(0, Int(0, 100_000), help="batches to estimate stored statistics anew from at the end")
    validation: float = knob(0.1, Float(0.0, 0.5), help="share of the data held out to judge epochs by")
    keep: str = knob("best", Choice("best", "last"), help="which epoch's weights are the result")
    patience: int = knob(0, Int(0, 1_000_000), help="stop after this many epochs without a better one; 0 is never")
    memory: float = knob(0.0, Float(0.0, 1e7), help="megabytes that a step may keep for its gradients; 0 is any")
    snapshot: str = knob("", Text("path"), help="file to go on from after an interruption; empty is none")
    snapshot_every: int = knob(500, Int(1, 1_000_000), help="steps between snapshots, apart from those of epochs")

    def strategies(self) -> list[Strategy]:
        return [] if self.loss is None else [self.loss]

    def run(self, model: ir.Model, context: RunContext) -> ir.Model:
        from pumice.train.application import train

        return train(self, model, context)


@attrs.frozen(kw_only=True)
class Prune(Step):
    """Remove whole channels, heads and hidden units, the least important first, and prove the result."""

    name = "prune"
    scorer: ImportanceScorer | None = knob(
        None, Use("importance-scorer"), help="what tells which channels matter; magnitude of the weights if left open"
    )
    ratio: float = knob(0.3, Float(0.0, 0.99), help="share to remove of what `of` counts")
    of: str = knob("channels", Choice("channels", "macs", "params"), help="what the ratio counts")
    scope: str = knob("local", Choice("local", "global", "scopes"), help="whose channels are ranked together")
    scopes: tuple[str, ...] = knob((), Names(), help="layers ranked among themselves, a glob pattern for each scope")
    schedule: str = knob("one-shot", Choice("one-shot", "iterative", "cubic"), help="how the rounds approach the ratio")
    rounds: int = knob(4, Int(1, 1000), help="rounds of scoring and removing", when=lambda s: s.schedule != "one-shot")
    join: str = knob("mean", Choice("sum", "mean", "max"), help="how the scores of a group's weights become one")
    normalise: str = knob(
        "mean", Choice("none", "mean", "max", "l2", "rank"), help="what makes the scores of layers comparable"
    )
    multiple: int = knob(1, Int(1, 256), help="round what a layer keeps up to a multiple of this")
    floor: int = knob(1, Int(1, 100_000), help="channels that every layer keeps at least")
    least: float = knob(0.1, Float(0.0, 1.0), help="share of its channels that every layer keeps at least")
    protect: tuple[str, ...] = knob((), Names(), help="layers or values that lose nothing (glob patterns)")
    recover: str = knob("none", Choice("none", "least-squares"), help="how readers make up for what they lost")

    def resolved(self) -> Self:
        return self if self.scorer is not None else attrs.evolve(self, scorer=default_scorer())

    def run(self, model: ir.Model, context: RunContext) -> ir.Model:
        from pumice.prune.application import prune

        scorer = self.scorer or default_scorer()
        refusal = scorer.accepts(model)
        if refusal:
            raise ModelError(f"importance scorer '{scorer.name}' cannot work on this model: {refusal}")
        return prune(self, scorer, model, context)


def default_scorer() -> ImportanceScorer:
    """`magnitude` if it is installed, else the only or first scorer there is."""
    known = registry().strategies("importance-scorer")
    return registry().make(ImportanceScorer, "magnitude" if "magnitude" in known or not known else next(iter(known)))


def default_quantizer() -> Quantizer:
    """`int8` if it is installed, else the only or first quantizer there is."""
    known = registry().strategies("quantizer")
    return registry().make(Quantizer, "int8" if "int8" in known or not known else next(iter(known)))


STEPS = MappingProxyType({step.name: step for step in (Prune, Quantize, Train)})
