"""What a quantizer is given: the calibration data, a way to look inside the model while it streams, and the ledger.

Calibration runs sample by sample, so that memory does not grow with the data and nothing depends on how the samples
are batched.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
from numpy.typing import NDArray

from pumice.errors import DataError
from pumice.ledger import Ledger
from pumice.measure.budget import Drift, rows
from pumice.model import clone
from pumice.progress import Progress, Silent
from pumice.quantize.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.data import Dataset
    from pumice.pipeline import RunContext
    from pumice.steps import Quantize
    from pumice.strategy import Metric, Runtime

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class QuantizeContext:
    """Everything around the model that a quantizer may use."""

    calibration: Dataset | None
    runtime: Runtime
    target: Target
    ledger: Ledger = attrs.field(factory=Ledger)
    samples: int = 512
    max_drop: float = 0.01
    noise: float = 0.0
    """Noise-to-signal ratio that the outputs may get at most, whatever `max_drop` allows; 0 is any."""
    exclude: tuple[str, ...] = ()
    seed: int = 0
    progress: Progress = attrs.field(factory=Silent)
    metrics: tuple[Metric, ...] = ()
    """What the run measures; the guard judges by them."""
    kept: Mapping[str, str] = attrs.field(factory=dict)
    """Why nodes are to stay in floating point, by name: what the guard found (see `guard`)."""
    draft: bool = False
    """Only how layers compare matters: a quantizer that has a quicker, somewhat less accurate way may take it."""
    training: Dataset | None = None
    """Labelled data for quantizers that train."""
    notes: list[str] = attrs.field(factory=list)
    """Sentences that the user should read."""
    _recalled: dict[type, Any] = attrs.field(factory=dict)

    @classmethod
    def of(cls, step: Quantize, run: RunContext) -> QuantizeContext:
        """The context of a `quantize` step of a run."""
        return cls(
            calibration=run.calibration,
            runtime=run.runtime,
            target=Target.named(step.target),
            ledger=run.ledger,
            samples=step.samples,
            max_drop=step.max_drop,
            noise=step.noise,
            exclude=step.exclude,
            seed=run.seed,
            progress=run.progress,
            metrics=run.metrics,
            training=run.training,
            notes=run.notes,
        )

    def excluded(self, node: ir.Node) -> str | None:
        """Why this node is to stay in floating point (the user excluded it, or the guard took it back), or None."""
        pattern = next((p for p in self.exclude if fnmatch.fnmatchcase(node.name or "", p)), None)
        if pattern is not None:
            return f"it matches the pattern '{pattern}' of the knob 'exclude'"
        return self.kept.get(node.name or "")

    def recall(self, kind: type[T]) -> T:
        """What earlier attempts to quantize the same model left in an object of this type; at first it is `kind()`.

        The guard may ask for a model several times, with other nodes excluded: what the data taught stays the same.
        """
        if kind not in self._recalled:
            self._recalled[kind] = kind()
        found: T = self._recalled[kind]
        return found

    def samples_with_labels(self, limit: int | None = None) -> Iterator[tuple[dict[str, NDArray[Any]], Any]]:
        """(feeds, labels) of the calibration data, one sample at a time; labels are None where there are none.

        A feed of several rows of a batch axis is that many samples, so that nothing depends on how the data is batched.

        Raises:
            DataError: there is no calibration data, or it is empty.
        """
        if self.calibration is None:
            raise DataError("quantization needs calibration data: give it with --data (data=)")
        count = 0
        for row in rows(self.calibration, min(limit or self.samples, self.samples)):
            count += 1
            yield row
        if not count:
            raise DataError("the calibration data is empty: give at least one sample")

    def feeds(self, limit: int | None = None) -> Iterator[dict[str, NDArray[Any]]]:
        """The calibration feeds, one sample at a time."""
        return (feeds for feeds, _ in self.samples_with_labels(limit))

    def stream(
        self,
        model: ir.Model,
        names: Iterable[str],
        observe: Callable[[dict[str, NDArray[Any]]], None],
        *,
        label: str = "calibrate",
        limit: int | None = None,
    ) -> None:
        """Run the calibration data through `model` and hand `observe` the named values (and graph inputs), by name."""
        wanted = list(dict.fromkeys(names))
        inputs = {value.name for value in model.graph.inputs}
        taps = [name for name in wanted if name not in inputs]
        session = self.runtime.open(clone(model), outputs=taps) if taps else None
        total = self.calibration.length if self.calibration is not None else None
        with self.progress.task(label, min(total or self.samples, limit or self.samples)) as advance:
            for feeds in self.feeds(limit):
                values = session.run(feeds) if session is not None else {}
                observe({name: values[name] if name in values else feeds[name] for name in wanted})
                advance()

    def drift(self, original: ir.Model, changed: ir.Model, limit: int = 64) -> Drift:
        """How far the outputs of `changed` lie from those of `original` on the calibration data."""
        before, after = self.runtime.open(clone(original)), self.runtime.open(clone(changed))
        drift = Drift()
        for feeds in self.feeds(limit):
            drift.update(before.run(feeds), after.run(feeds))
        return drift
