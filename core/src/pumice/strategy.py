"""Strategies and knobs: the frozen records that hooks yield.

A strategy is an attrs-frozen class; *the class is the record, the instance is the configured strategy*. Its parameters
are attrs fields declared with `knob(default, domain, help=...)`. From that one declaration come the command-line flags,
the recipe keys and their validation, the documentation table, the web form and the search space:

    @attrs.frozen(kw_only=True)
    class Fpgm(ImportanceScorer):
        name = "fpgm"
        norm: str = knob("l2", Choice("l1", "l2"), help="distance between filters")

Domains and knobs themselves are in `pumice.knobs`.
"""

from __future__ import annotations

import enum
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import attrs

from pumice.errors import KnobError, nearest
from pumice.knobs import Knob

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from pumice.data import Dataset
    from pumice.ops.record import Placement
    from pumice.prune.sparsity import Pattern
    from pumice.prune.trials import Trials
    from pumice.quantize.context import QuantizeContext
    from pumice.search import Proposal, Space, Trial


class Need(enum.Enum):
    """What a strategy must be given beyond the model."""

    CALIBRATION = "calibration data"
    LABELS = "labels"
    GRADIENTS = "gradients"
    TEACHER = "teacher"
    TRAINING = "training"


@attrs.frozen(kw_only=True)
class Cost:
    """A cheap estimate made without running anything."""

    seconds: float = 0.0
    memory: int = 0
    """Peak bytes."""


@attrs.frozen(kw_only=True)
class Strategy:
    """Base of every technique. Subclasses are attrs-frozen and set `name`; the kind comes from the base they extend."""

    kind: ClassVar[str] = ""
    name: ClassVar[str] = ""
    needs: ClassVar[frozenset[Need]] = frozenset()

    @classmethod
    def knobs(cls) -> dict[str, Knob]:
        """Every knob of the strategy, in the order declared."""
        found = {}
        for field in attrs.fields(cls):
            if "pumice.knob" in field.metadata:
                domain, text, when, search = field.metadata["pumice.knob"]
                found[field.name] = Knob(
                    name=field.name, default=field.default, domain=domain, help=text, when=when, search=search
                )
        return found

    @classmethod
    def configure(cls, values: Mapping[str, Any]) -> Self:
        """An instance from recipe or command-line values.

        Raises:
            KnobError: an unknown knob (the nearest known one is named) or a value outside its domain.
        """
        known = cls.knobs()
        for key in values:
            if key not in known:
                raise KnobError(f"{cls.kind} '{cls.name}' has no knob '{key}'{nearest(key, known)}")
        return cls(**values)

    def settings(self) -> dict[str, Any]:
        """The knobs and their values, strategies as `{"name": ..., knobs}`: what a recipe would say."""
        found: dict[str, Any] = {}
        for key in self.knobs():
            value = getattr(self, key)
            found[key] = [_told(each) for each in value] if isinstance(value, tuple) else _told(value)
        return found

    @classmethod
    def summary(cls) -> str:
        """The first line of the class docstring, or of its module's."""
        import sys

        text = cls.__dict__.get("__doc__") or getattr(sys.modules.get(cls.__module__), "__doc__", "") or ""
        return text.strip().splitlines()[0] if text.strip() else ""

    def accepts(self, model: ir.Model) -> str | None:
        """None if the strategy can work on the model, else the reason why not, as a sentence."""
        return None

    def cost(self, model: ir.Model) -> Cost:
        """What running it would cost, estimated without running it."""
        return Cost()


def _told(value: Any) -> Any:
    return {"name": value.name, **value.settings()} if isinstance(value, Strategy) else value


class ImportanceScorer(Strategy):
    """Scores the channels of a group: the lowest are pruned first."""

    kind = "importance-scorer"
    normalise: ClassVar[str] = "mean"
    """What makes its scores of different layers comparable, unless the step says otherwise: they are divided by their
    mean; `none` if they compare as they are."""
    chooses: ClassVar[bool] = False
    """Whether it stands for others, among which `settled` chooses."""

    def settled(self, trials: Trials) -> ImportanceScorer:
        """The scorer to prune with: itself, or what a scorer that stands for others chose after trying them.

        `trials.candidates()` are the installed scorers that the data suffice for; `trials.of(scorer)` prunes the model
        with one to the step's target, refits what is left, and says what that cost.
        """
        return self

    def score(self, group: Any, context: Any) -> NDArray[Any]:
        """Scores of shape (channels,), higher means more important."""
        raise NotImplementedError


class Sparsifier(Strategy):
    """Says which weights of a layer become zero, and what the others then are."""

    kind = "sparsifier"

    def sparsified(self, weights: NDArray[Any], moments: NDArray[Any] | None, pattern: Pattern) -> NDArray[Any]:
        """The weights of a layer, (outputs, inputs) in float64, with zeros where the pattern of the step has them.

        Args:
            weights: as they are.
            moments: second moments of the inputs, (inputs, inputs), positive definite; None where there are no data.
            pattern: its `keep(scores)` says which of a matrix of scores stay, row by row; with `whole=True` they
                compete over the whole matrix, unless the pattern is one of runs (N:M).
        """
        raise NotImplementedError


class Quantizer(Strategy):
    """Turns a floating-point model into one with low-bit weights or activations."""

    kind = "quantizer"
    chooses: ClassVar[bool] = False
    """Whether it gives every layer a format of its own, so that it can keep any budget: where too much is lost,
    a search turns to it first."""
    goals: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})
    """Values of knobs by the goal of a search (`Auto.goal`), where it begins with others than the defaults."""

    def quantize(self, model: ir.Model, context: QuantizeContext) -> ir.Model:
        """Return the quantized model; `model` itself is left unchanged.

        Every node looked at gets a ledger line through `context.ledger`. Calibration runs through `context`. A layer
        for which `context.excluded(node)` gives a reason stays as it is, with that reason in its line: so the user
        keeps layers out, and so the accuracy guard, which stands around every quantizer, gives layers back that cost
        more than the step may lose. It may therefore call `quantize` several times; see `context.recall`.
        """
        raise NotImplementedError


class Loss(Strategy):
    """A differentiable training or distillation objective."""

    kind = "loss"

    def value_and_grad(self, outputs: Mapping[str, NDArray[Any]], batch: Any) -> tuple[float, dict[str, NDArray[Any]]]:
        """The loss, averaged over the batch, and its gradient with respect to each output it used.

        `batch` is a `pumice.data.Batch`: `feeds`, `labels` (samples first, None if there are none) and `size`.
        Gradients have the shape of their output; a loss computes in float32 at least and changes no argument. For
        arrays of a device the loss may be an array without axes there, which is looked at when it is wanted.
        """
        raise NotImplementedError


class Metric(Strategy):
    """Scores model outputs sample by sample; accuracy is the mean, its interval and tests follow from the samples."""

    kind = "metric"
    higher_is_better: ClassVar[bool] = True
    fidelity: ClassVar[bool] = False
    """True if the metric compares with the original model's outputs instead of labels."""

    def score(
        self, outputs: Mapping[str, NDArray[Any]], labels: Any, reference: Mapping[str, NDArray[Any]]
    ) -> NDArray[Any]:
        """Float scores of shape (samples,) for one batch.

        `outputs` maps each model output to an array; `reference` holds the original model's outputs for the same
        batch; `labels` is what the dataset carries for the batch (None when it has none).
        """
        raise NotImplementedError


class Session(typing.Protocol):
    """An opened model. `run` may be called from several threads at once."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All requested outputs, by name."""
        ...

    @property
    def description(self) -> str:
        """What really runs, e.g. `onnxruntime 1.31.1, CPUExecutionProvider, 1 thread`."""
        ...


class Runtime(Strategy):
    """Executes models: for calibration, for measuring and for deployment."""

    kind = "runtime"
    rank: ClassVar[int] = 0
    """The highest-ranked runtime that is available is the default; core's reference runtime has rank 0."""
    channel_multiple: ClassVar[int] = 1
    """Channels that its kernels compute at once: pruning keeps a multiple of it."""

    def available(self) -> str | None:
        """None if it can run here, else the reason and the remedy. Must be cheap."""
        return None

    def placement(self) -> Placement | None:
        """Where it has models trained: a device with memory of its own. None: the CPU."""
        return None

    def open(
        self, model: ir.Model | Path, *, outputs: Sequence[str] | None = None, threads: int | None = None
    ) -> Session:
        """Open a model (in memory or a file).

        `outputs` names the values to return, which may be any intermediate value; None means the graph outputs.
        `threads` is the number of threads for one run; None lets the runtime choose.

        Raises:
            ModelError: the runtime does not accept the model.
        """
        raise NotImplementedError


class Exporter(Strategy):
    """Writes a compressed model in a form that a runtime loads."""

    kind = "exporter"

    def available(self) -> str | None:
        """None if it can write here, else the reason and the remedy; asked before the work begins."""
        return None

    def export(self, model: ir.Model, path: Path, context: Any) -> list[Path]:
        """Write and return the files written. Must verify what it wrote."""
        raise NotImplementedError


class DatasetReader(Strategy):
    """Recognises and opens one form of data on disk."""

    kind = "dataset"

    def recognises(self, path: Path) -> bool:
        """True if `path` looks like this form. Must be cheap: no file is read whole."""
        raise NotImplementedError

    def open(self, path: Path, model: ir.Model) -> Dataset:
        """A dataset that feeds the inputs of `model`."""
        raise NotImplementedError


class Searcher(Strategy):
    """Proposes the next recipe to try from the trials so far."""

    kind = "searcher"

    def propose(self, space: Space, history: Sequence[Trial]) -> Proposal | None:
        """The next point of the space, None if there is none left.

        `space.walk(choose)` asks `choose(name, domain)` for every knob that matters and returns the proposal. A trial
        has the `values` that were chosen, by those names, a `cost` to be made small, the `violation` of the limits (0
        if it keeps them) and its `state`. A function of its knobs and its arguments alone, so that a search goes on
        after a kill as it would have: randomness comes from a seed and the number of trials. A proposal that was tried
        before comes back in the history as `repeated`.
        """
        raise NotImplementedError


@attrs.frozen(kw_only=True)
class Command:
    """A command that a plugin adds to the command line: `load()` imports and returns a `click.Command`."""

    name: str
    summary: str
    load: Callable[[], Any]
