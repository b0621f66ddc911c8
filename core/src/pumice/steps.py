"""Steps: what a recipe is made of. A step puts one strategy to work on a model, and answers for the result.

Each step is declared like a strategy (attrs-frozen, knobs), so the command line and the recipe read it the same way. A
step gets a model and a `RunContext` and returns a new model; it never changes the one it was given. The pipeline checks
that the ledger shows something applied, and rolls a step back that lost more than its budget.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Self

import attrs

from pumice.errors import KnobError, ModelError, nearest
from pumice.knobs import Choice, Flag, Float, Int, Names, Several, Text, Use, knob
from pumice.quantize.target import names
from pumice.registry import registry
from pumice.strategy import ImportanceScorer, Loss, Need, Quantizer, Searcher, Sparsifier, Strategy

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.pipeline import RunContext


PERCENT = (("%", 0.01),)
TIMES = (("x", 1.0),)
"""Units that a text may end in, and what they multiply by."""


@attrs.frozen(kw_only=True)
class Step(Strategy):
    """Base of the steps."""

    kind = "step"
    compresses: ClassVar[bool] = True
    """Whether its result is smaller or faster; a step that only repairs comes after one that compresses."""
    ends: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Steps that cannot come after it, by name, and why."""
    searchable: ClassVar[bool] = True
    """Whether the search may use it."""

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
    ends = MappingProxyType(
        {
            "prune": "channels of integer weights carry scales that cannot be sliced with them",
            "sparsify": "the weights are integers already; make them zero before",
            "train": "integer weights have no gradient; quantize with quant-qat to train through the rounding",
            "distil": "integer weights have no gradient; quantize with quant-qat to train through the rounding",
            "quantize": "the model is quantized already",
        }
    )
    quantizer: Quantizer | None = knob(
        None, Use("quantizer"), help="how to quantize; a name or a table with its knobs", search=True
    )
    target: str = knob("ort-cpu", Choice(*names()), help="runtime that the model is made for")
    samples: int = knob(512, Int(1, 1_000_000), help="calibration samples to use at most")
    max_drop: float = knob(
        0.01, Float(0.0, 1.0, units=PERCENT), help="accuracy that may be lost, as a fraction (0.01 is one point)"
    )
    noise: float = knob(
        0.0,
        Float(0.0, 1e3),
        help="squared noise that outputs may get, as a share of their squared signal; 0 leaves it to max_drop",
    )
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
    compresses = False
    needs = frozenset({Need.GRADIENTS, Need.TRAINING})
    loss: Loss | None = knob(None, Use("loss"), help="what to minimise; chosen by the labels if left open")
    epochs: int = knob(3, Int(1, 1_000_000), help="passes over the data", search=Int(1, 30, log=True))
    batch: int = knob(64, Int(1, 1_000_000, log=True), help="samples in a step")
    lr: float = knob(
        1e-3, Float(1e-9, 100.0, log=True), help="learning rate at its highest", search=Float(1e-4, 1e-2, log=True)
    )
    optimizer: str = knob("adamw", Choice("sgd", "adam", "adamw", "lamb"), help="how gradients move weights")
    momentum: float = knob(0.9, Float(0.0, 0.999), help="share of the past in the direction of a step")
    nesterov: bool = knob(True, Flag(), help="look ahead along the momentum (sgd)")
    weight_decay: float = knob(1e-4, Float(0.0, 1.0), help="pull of matrices and kernels towards zero")
    schedule: str = knob(
        "cosine",
        Choice("constant", "step", "cosine", "one-cycle"),
        help="course of the learning rate",
        search=Choice("cosine", "one-cycle"),
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
    device: str = knob(
        "cpu", Text("cpu or a runtime"), help="where to train: cpu, or a runtime that has a device (cuda)"
    )
    snapshot: str = knob("", Text("path"), help="file to go on from after an interruption; empty is none")
    snapshot_every: int = knob(500, Int(1, 1_000_000), help="steps between snapshots, apart from those of epochs")

    def strategies(self) -> list[Strategy]:
        return [] if self.loss is None else [self.loss]

    def run(self, model: ir.Model, context: RunContext) -> ir.Model:
        from pumice.train.application import train

        return train(self, model, context)


@attrs.frozen(kw_only=True)
class Distil(Train):
    """Train a smaller network, the student, to do what a larger one, the teacher, does; labels are not needed."""

    name = "distil"
    needs = frozenset({Need.GRADIENTS, Need.TRAINING, Need.TEACHER})
    teacher: str = knob("", Text("path"), help="ONNX file to learn from; empty is the model that the run was given")
    student: str = knob("", Text("path"), help="ONNX file, or TOML that describes a network; empty is the model itself")
    width: float = knob(1.0, Float(0.01, 1.0), help="share of its channels that the student keeps")
    layers: float = knob(1.0, Float(0.0, 1.0), help="share of its layers that the student keeps")
    assistants: int = knob(0, Int(0, 10), help="networks of sizes in between that pass the teaching on")
    keep_score: float = knob(
        0.0,
        Float(0.0, 1.0),
        help="share of the teacher's score that every stage must keep, on samples held out",
        when=lambda s: s.assistants > 0,
    )
    pairs: int = knob(0, Int(0, 100), help="trainings of the same student alone, to tell what the teacher was worth")
    losses: tuple[Loss, ...] = knob((), Several("loss"), help="what to compare with the teacher; soft-targets if open")
    alpha: float = knob(0.9, Float(0.0, 1.0), help="share of the teacher in what is minimised; labels have the rest")
    connector: str = knob("auto", Choice("auto", "learned", "kept"), help="how values of different widths are compared")
    stream: bool = knob(False, Flag(), help="read the teacher's weights layer by layer: one that memory does not hold")
    cache: str = knob("", Text("path"), help="file that remembers the teacher's answers; empty computes them")
    cache_size: float = knob(1000.0, Float(1.0, 1e7), help="megabytes that the file may take")

    def resolved(self) -> Self:
        return self if self.losses else attrs.evolve(self, losses=(registry().make(Loss, "soft-targets"),))

    def strategies(self) -> list[Strategy]:
        return [*super().strategies(), *self.losses]

    def run(self, model: ir.Model, context: RunContext) -> ir.Model:
        from pumice.distil.application import distil

        return distil(self, model, context)


@attrs.frozen(kw_only=True)
class Prune(Step):
    """Remove whole channels, heads and hidden units, the least important first, and prove the result."""

    name = "prune"
    scorer: ImportanceScorer | None = knob(
        None,
        Use("importance-scorer"),
        help="what tells which channels matter; magnitude of the weights if left open",
        search=True,
    )
    ratio: float = knob(0.3, Float(0.0, 0.99), help="share to remove of what `of` counts", search=Float(0.05, 0.9))
    of: str = knob(
        "channels",
        Choice("channels", "macs", "params", "latency"),
        help="what the ratio counts; latency is measured on the run's runtime",
    )
    scope: str = knob(
        "local",
        Choice("local", "global", "scopes"),
        help="whose channels are ranked together",
        search=Choice("local", "global"),
    )
    scopes: tuple[str, ...] = knob((), Names(), help="layers ranked among themselves, a glob pattern for each scope")
    by: str = knob(
        "score",
        Choice("score", "score-per-mac", "score-per-param", "score-per-time"),
        help="what a ranking over layers compares: scores, or scores by what a channel costs; its time is measured on "
        "the run's runtime, without half of the layer's channels",
        when=lambda s: s.scope != "local",
    )
    schedule: str = knob("one-shot", Choice("one-shot", "iterative", "cubic"), help="how the rounds approach the ratio")
    rounds: int = knob(4, Int(1, 1000), help="rounds of scoring and removing", when=lambda s: s.schedule != "one-shot")
    join: str = knob("mean", Choice("sum", "mean", "max"), help="how the scores of a group's weights become one")
    normalise: str = knob(
        "scorer",
        Choice("scorer", "none", "mean", "max", "l2", "rank", "outputs"),
        help="what makes the scores of layers comparable; outputs: the error measured when each layer alone is pruned",
    )
    multiple: int = knob(0, Int(0, 256), help="round what a layer keeps up to a multiple; 0: what the runtime likes")
    floor: int = knob(1, Int(1, 100_000), help="channels that every layer keeps at least")
    least: float = knob(0.1, Float(0.0, 1.0), help="share of its channels that every layer keeps at least")
    protect: tuple[str, ...] = knob((), Names(), help="layers or values that lose nothing (glob patterns)")
    recover: str = knob(
        "none", Choice("none", "least-squares"), help="how readers make up for what they lost", search=True
    )
    statistics: bool = knob(False, Flag(), help="estimate batch normalisation anew on the calibration data")
    max_drop: float = knob(
        1.0, Float(0.0, 1.0), help="accuracy that may be lost: rounds stop before it is; 1 leaves that to later steps"
    )

    def resolved(self) -> Self:
        return self if self.scorer is not None else attrs.evolve(self, scorer=default_scorer())

    def run(self, model: ir.Model, context: RunContext) -> ir.Model:
        from pumice.prune.application import prune

        scorer = self.scorer or default_scorer()
        refusal = scorer.accepts(model)
        if refusal:
            raise ModelError(f"importance scorer '{scorer.name}' cannot work on this model: {refusal}")
        return prune(self, scorer, model, context)


@attrs.frozen(kw_only=True)
class Sparsify(Step):
    """Make single weights zero, in a pattern: smaller once compressed, and no faster where zeros are not skipped."""

    name = "sparsify"
    searchable = False  # files and latencies stay as they are
    sparsifier: Sparsifier | None = knob(
        None, Use("sparsifier"), help="what tells which weights become zero; magnitude if left open"
    )
    pattern: str = knob(
        "unstructured", Choice("unstructured", "2:4", "1:4", "4:8"), help="where zeros may be; N:M keeps N of M inputs"
    )
    ratio: float = knob(
        0.5, Float(0.0, 0.999), help="share that becomes zero", when=lambda s: s.pattern == "unstructured"
    )
    smallest: int = knob(64, Int(1, 1_000_000), help="layers with fewer weights stay dense")
    exclude: tuple[str, ...] = knob((), Names(), help="nodes that stay dense (glob patterns)")
    max_drop: float = knob(1.0, Float(0.0, 1.0), help="accuracy that may be lost; 1 leaves that to later steps")

    def resolved(self) -> Self:
        return self if self.sparsifier is not None else attrs.evolve(self, sparsifier=default_sparsifier())

    def run(self, model: ir.Model, context: RunContext) -> ir.Model:
        from pumice.prune.sparsity import sparsify

        return sparsify(self, self.sparsifier or default_sparsifier(), model, context)


def default_sparsifier() -> Sparsifier:
    """`magnitude` if it is installed, else the only or first sparsifier there is."""
    known = registry().strategies("sparsifier")
    return registry().make(Sparsifier, "magnitude" if "magnitude" in known or not known else next(iter(known)))


def default_scorer() -> ImportanceScorer:
    """`magnitude` if it is installed, else the only or first scorer there is."""
    known = registry().strategies("importance-scorer")
    return registry().make(ImportanceScorer, "magnitude" if "magnitude" in known or not known else next(iter(known)))


def default_quantizer() -> Quantizer:
    """`int8` if it is installed, else the only or first quantizer there is."""
    known = registry().strategies("quantizer")
    return registry().make(Quantizer, "int8" if "int8" in known or not known else next(iter(known)))


@attrs.frozen(kw_only=True)
class Auto(Step):
    """Search for the best recipe from whatever is installed, by measuring, and apply it."""

    name = "auto"
    searchable = False
    needs = frozenset({Need.CALIBRATION})
    searcher: Searcher | None = knob(None, Use("searcher"), help="what proposes recipes; the best installed if open")
    max_drop: float = knob(0.01, Float(0.0, 1.0, units=PERCENT), help="accuracy that may be lost (0.01 or 1%)")
    goal: str = knob("balanced", Choice("balanced", "latency", "size"), help="what to make small within the limits")
    latency: float = knob(
        0.0, Float(0.0, 1e9, units=(("ms", 1.0), ("s", 1e3))), help="milliseconds of an inference at most; 0 is any"
    )
    speedup: float = knob(0.0, Float(0.0, 1e6, units=TIMES), help="times faster at least; 0 is any")
    size: float = knob(0.0, Float(0.0, 1e6, units=TIMES), help="times smaller at least; 0 is any")
    memory: float = knob(
        0.0, Float(0.0, 1e7, units=(("MB", 1.0), ("GB", 1e3))), help="megabytes at the peak at most; 0 is any"
    )
    budget: float = knob(
        10.0, Float(0.0, 1e6, units=(("min", 1.0), ("h", 60.0), ("s", 1 / 60))), help="minutes to search; 0 is no end"
    )
    trials: int = knob(0, Int(0, 1_000_000), help="recipes to try at most; 0 is as many as the time allows")
    workers: int = knob(1, Int(1, 1024), help="recipes tried at once")
    executor: str = knob("processes", Text("processes | dask://HOST:PORT"), help="where recipes are tried")
    study: str = knob(
        "", Text("folder"), help="keeps the trials, so that a search that was stopped goes on; empty: none"
    )

    def strategies(self) -> list[Strategy]:
        return []

    def resolved(self) -> Self:
        return self if self.searcher is not None else attrs.evolve(self, searcher=default_searcher())

    def run(self, model: ir.Model, context: RunContext) -> ir.Model:
        from pumice.search.application import apply_best

        return apply_best(self, model, context)


def default_searcher() -> Searcher:
    """`tpe` if it is installed, else the first searcher there is."""
    known = registry().strategies("searcher")
    return registry().make(Searcher, "tpe" if "tpe" in known or not known else next(iter(known)))


STEPS = MappingProxyType({step.name: step for step in (Prune, Sparsify, Quantize, Train, Distil, Auto)})
