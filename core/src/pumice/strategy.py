"""Strategies and knobs: the frozen records that hooks yield.

A strategy is an attrs-frozen class; *the class is the record, the instance is the configured strategy*. Its parameters
are attrs fields declared with `knob(default, domain, help=...)`. From that one declaration come the command-line flags,
the recipe keys and their validation, the documentation table, the web form and the search space:

    @attrs.frozen(kw_only=True)
    class Fpgm(ImportanceScorer):
        name = "fpgm"
        norm: str = knob("l2", Choice("l1", "l2"), help="distance between filters")

A value outside its domain cannot be constructed: the error names the strategy, the knob, the value and the domain. A
domain knows four things: `convert` a value to the plain type it stands for (a list to a tuple, a NumPy integer to an
int), `check` it, `parse` the text of a command line, and print itself. `parse(str(value))` is `value`.
"""

from __future__ import annotations

import enum
import math
import numbers
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import attrs

from pumice.errors import KnobError, nearest

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from pumice.data import Dataset
    from pumice.quantize.context import QuantizeContext

T = TypeVar("T")


# --- domains: what values a knob may take -----------------------------------------------------------------------------


@attrs.frozen(init=False)
class Choice:
    """One of a few named values."""

    options: tuple[Any, ...]

    def __init__(self, *options: Any) -> None:
        self.__attrs_init__(tuple(options))

    def convert(self, value: Any) -> Any:
        return next((o for o in self.options if _same(o, value)), value)

    def check(self, value: Any) -> str | None:
        if any(_same(option, value) for option in self.options):
            return None
        hint = nearest(value, [str(o) for o in self.options]) if isinstance(value, str) else ""
        return f"must be one of {', '.join(map(repr, self.options))}" + (hint if hint.startswith("; did") else "")

    def parse(self, text: str) -> Any:
        return next((o for o in self.options if str(o) == text), text)

    def __str__(self) -> str:
        return " | ".join(map(str, self.options))


@attrs.frozen
class Int:
    """A whole number in [low, high]; `log` says that the search should sample it on a logarithmic scale."""

    low: int
    high: int
    log: bool = False

    def convert(self, value: Any) -> Any:
        return int(value) if not isinstance(value, bool) and isinstance(value, numbers.Integral) else value

    def check(self, value: Any) -> str | None:
        if isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high:
            return None
        return f"must be a whole number from {self.low} to {self.high}"

    def parse(self, text: str) -> Any:
        return _number(text, int)

    def __str__(self) -> str:
        return f"{self.low} .. {self.high}"


@attrs.frozen
class Float:
    """A finite number in [low, high]; `log` as for `Int`."""

    low: float
    high: float
    log: bool = False

    def convert(self, value: Any) -> Any:
        return float(value) if not isinstance(value, bool) and isinstance(value, numbers.Real) else value

    def check(self, value: Any) -> str | None:
        if isinstance(value, float) and math.isfinite(value) and self.low <= value <= self.high:
            return None
        return f"must be a number from {self.low:g} to {self.high:g}"

    def parse(self, text: str) -> Any:
        return _number(text, float)

    def __str__(self) -> str:
        return f"{self.low:g} .. {self.high:g}"


@attrs.frozen
class Flag:
    """True or false."""

    def convert(self, value: Any) -> Any:
        return value

    def check(self, value: Any) -> str | None:
        return None if isinstance(value, bool) else "must be true or false"

    def parse(self, text: str) -> Any:
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(text.lower(), text)

    def __str__(self) -> str:
        return "true | false"


@attrs.frozen
class Text:
    """Free text, e.g. a node-name pattern. The search leaves it alone."""

    pattern: str = ""
    """What kind of text is meant, for the documentation."""

    def convert(self, value: Any) -> Any:
        return value

    def check(self, value: Any) -> str | None:
        return None if isinstance(value, str) else "must be text"

    def parse(self, text: str) -> Any:
        return text

    def __str__(self) -> str:
        return self.pattern or "text"


@attrs.frozen
class Names:
    """A tuple of glob patterns over node names, e.g. `["head/*"]`. The search leaves it alone."""

    def convert(self, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    def check(self, value: Any) -> str | None:
        ok = isinstance(value, tuple) and all(isinstance(v, str) for v in value)
        return None if ok else "must be a list of texts"

    def parse(self, text: str) -> Any:
        return tuple(part.strip() for part in text.split(",") if part.strip())

    def __str__(self) -> str:
        return "list of patterns"


@attrs.frozen
class Use:
    """Another strategy of the given kind, e.g. the quantizer of the `quantize` step."""

    kind: str

    def convert(self, value: Any) -> Any:
        return value

    def check(self, value: Any) -> str | None:
        if isinstance(value, Strategy) and value.kind == self.kind:
            return None
        return f"must be a {self.kind}"

    def parse(self, text: str) -> Any:
        return text

    def __str__(self) -> str:
        return f"a {self.kind}"


Domain = Choice | Int | Float | Flag | Text | Names | Use


def _same(option: Any, value: Any) -> bool:
    """Equality that does not take True for 1, nor an array for a scalar."""
    scalar = (str, int, float, type(None))
    return isinstance(value, scalar) and isinstance(option, bool) == isinstance(value, bool) and option == value


def _number(text: str, cast: Callable[[str], Any]) -> Any:
    try:
        return cast(text)
    except ValueError:
        return text


# --- knobs ------------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Knob:
    """The whole declaration of one parameter of a strategy."""

    name: str
    default: Any
    domain: Domain
    help: str
    when: Callable[[Any], bool] | None = None
    """Tells whether the knob matters for an instance; the search does not vary it where it does not."""

    def parse(self, text: str) -> Any:
        """The value that a command-line text stands for (still unchecked: construction checks)."""
        return self.domain.parse(text)


def knob(
    default: T,
    domain: Domain | None = None,
    *,
    help: str,
    when: Callable[[Any], bool] | None = None,
) -> T:
    """Declare a parameter of a strategy. `domain` may be left out for a bool (`Flag`) or a tuple of names (`Names`)."""
    if domain is None:
        domain = Flag() if isinstance(default, bool) else Names() if isinstance(default, tuple) else None
    if domain is None:
        raise TypeError("knob() needs a domain (Choice, Int, Float, Flag, Text, Names or Use) for this default")
    if not help.strip():
        raise TypeError("knob() needs a help text: it is what every user of the knob reads")
    complaint = None if isinstance(domain, Use) else domain.check(domain.convert(default))
    if complaint:
        raise TypeError(f"knob() default {default!r} is outside its own domain: it {complaint}")

    def validate(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        wrong = None if isinstance(domain, Use) and value is None else domain.check(value)
        if wrong:
            raise KnobError(f"{instance.kind} '{instance.name}': knob '{attribute.name}' = {value!r} {wrong}")

    return attrs.field(
        default=default,
        validator=validate,
        converter=domain.convert,
        metadata={"pumice.knob": (domain, help, when)},
    )


# --- strategies -------------------------------------------------------------------------------------------------------


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
                domain, text, when = field.metadata["pumice.knob"]
                found[field.name] = Knob(name=field.name, default=field.default, domain=domain, help=text, when=when)
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
            if isinstance(value, Strategy):
                value = {"name": value.name, **value.settings()}
            found[key] = list(value) if isinstance(value, tuple) else value
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


class ImportanceScorer(Strategy):
    """Scores the channels of a group: the lowest are pruned first."""

    kind = "importance-scorer"

    def score(self, group: Any, context: Any) -> NDArray[Any]:
        """Scores of shape (channels,), higher means more important."""
        raise NotImplementedError


class Quantizer(Strategy):
    """Turns a floating-point model into one with low-bit weights or activations."""

    kind = "quantizer"

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
        Gradients have the shape of their output; a loss computes in float32 at least and changes no argument.
        """
        raise NotImplementedError


class Metric(Strategy):
    """Scores model outputs sample by sample; accuracy is the mean, its interval and tests follow from the samples."""

    kind = "metric"
    higher_is_better: ClassVar[bool] = True
    fidelity: ClassVar[bool] = False
    """True if the metric compares with the original model's outputs instead of labels."""

    def score(
        self,
        outputs: Mapping[str, NDArray[Any]],
        labels: Any,
        reference: Mapping[str, NDArray[Any]],
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

    def available(self) -> str | None:
        """None if it can run here, else the reason and the remedy. Must be cheap."""
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
    """Proposes the next recipes to try from the trials so far."""

    kind = "searcher"

    def propose(self, space: Any, history: Sequence[Any]) -> Any:
        raise NotImplementedError


@attrs.frozen(kw_only=True)
class Command:
    """A command that a plugin adds to the command line: `load()` imports and returns a `click.Command`."""

    name: str
    summary: str
    load: Callable[[], Any]
