"""The pipeline: model in, recipe through, model and account out.

    load -> simplify -> step 1 -> step 2 -> ... -> measure

The way is one-directional. Every step works on a copy, and what its result no longer reads is dropped. A step that
applied nothing ends the run with nothing written; one that would cost more accuracy than it may is rolled back: the run
goes on from the model before it, and ends only if no step is left. What a step lost is judged against the model it was
given; measurements compare the *original file* with the final model, interleaved in one process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from pumice.errors import BudgetExceeded, NothingChanged, PumiceError
from pumice.knobs import Int
from pumice.ledger import Ledger
from pumice.progress import Progress, Silent
from pumice.recipe import Recipe
from pumice.registry import registry
from pumice.steps import Step
from pumice.strategy import Exporter, Metric, Need, Runtime

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.data import Dataset
    from pumice.diagnose import LayerError
    from pumice.measure import Comparison


THREADS = Int(1, 1024)
SEED = Int(0, 2**63 - 1)


def _within(domain: Int) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    """An attrs validator for what no knob declares."""

    def check(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
        reason = domain.check(domain.convert(value))
        if reason is not None:
            raise PumiceError(f"{field.name}={value!r} {reason}")

    return check


@attrs.frozen(kw_only=True)
class RunContext:
    """What every step of a run shares."""

    calibration: Dataset | None
    test: Dataset | None
    metrics: tuple[Metric, ...]
    runtime: Runtime
    ledger: Ledger
    seed: int = attrs.field(validator=_within(SEED))
    threads: int | None = attrs.field(validator=attrs.validators.optional(_within(THREADS)))
    progress: Progress
    training: Dataset | None = None
    """What a model may be trained on."""
    original: ir.Model | None = None
    """The model that the run was given, before any step; left unchanged."""
    notes: list[str] = attrs.field(factory=list)
    """Sentences for the user, beside the ledger's lines about single nodes."""


@attrs.frozen(kw_only=True)
class Result:
    """A compressed model and its account."""

    name: str
    """File name of the original, or the name of its graph."""
    model: ir.Model
    original: ir.Model
    recipe: Recipe
    ledger: Ledger
    measurements: Comparison
    layers: tuple[LayerError, ...]
    """Per-layer error and size, worst first (`pumice.diagnose`)."""
    notes: tuple[str, ...]
    """Sentences the user should read, e.g. that there were no labels."""
    seconds: Mapping[str, float]
    """Wall time of every phase."""
    runtime: str
    """Name of the runtime that calibrated and measured."""
    seed: int

    def command(
        self, model: str = "", data: str = "…", recipe: str = "recipe.toml", output: str = "…", test: str = ""
    ) -> str:
        """The command line that makes the same model again from its recipe."""
        model = model or (self.name if self.name.endswith(".onnx") else f"{self.name}.onnx")
        judged = f" --test {test}" if test else ""
        settings = f"--recipe {recipe} --runtime {self.runtime} --seed {self.seed}"
        return f"pumice compress {model} --data {data}{judged} {settings} -o {output}"

    def save(self, path: str | Path, exporter: str | Mapping[str, Any] | Exporter = "qdq") -> list[Path]:
        """Write the model through an exporter (atomically) and return the files written."""
        return registry().make(Exporter, exporter).export(self.model, Path(path), self)

    def report(self, path: str | Path) -> Path:
        """Write the account as one self-contained HTML page (and the same as JSON beside it)."""
        from pumice.report import write_report

        return write_report(self, Path(path))

    def to_json(self) -> dict[str, Any]:
        """The whole account, for machines."""
        return {
            "model": self.name,
            "headline": self.headline(),
            "notes": list(self.notes),
            "recipe": self.recipe.to_dict(),
            "seed": self.seed,
            "measurements": self.measurements.to_json(),
            "ledger": self.ledger.to_json(),
            "layers": [attrs.asdict(layer) for layer in self.layers],
            "seconds": dict(self.seconds),
        }

    def headline(self) -> str:
        """One sentence; begins with the bad news when there is any."""
        return self.measurements.headline()

    def summary(self) -> str:
        """The account in a few lines of plain text."""
        counts = self.ledger.counts()
        tally = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
        return "\n".join([self.headline(), *self.notes, f"ledger: {tally}"])


def compress(
    model: str | Path | ir.Model,
    data: Any = None,
    recipe: Recipe | str | Path | Mapping[str, Any] | None = None,
    *,
    test: Any = None,
    metrics: Sequence[str | Metric] | None = None,
    runtime: str | Mapping[str, Any] | Runtime | None = None,
    threads: int | None = None,
    seed: int = 0,
    measure: bool = True,
    progress: Progress | None = None,
) -> Result:
    """Compress a model and account for it.

    Args:
        model: path of an ONNX file, or a loaded model (left unchanged).
        data: samples: a path, a `Dataset`, a list of feeds, arrays (see `pumice.data.open_dataset`). A folder may hold
            `calibration/` and `test/`; otherwise part of the data calibrates and the rest measures.
        recipe: a `Recipe`, its TOML path, or its dictionary; None is the default recipe.
        test: other data to measure on.
        metrics: metric names or instances; None chooses by the outputs and the labels.
        runtime: runtime to calibrate and measure with; None takes the best installed.
        threads: threads of one inference when measuring; None is 1.
        seed: seeds whatever is random.
        measure: False skips latency and memory (accuracy is always measured when there is data).
        progress: shows progress; None is silent.

    Raises:
        PumiceError: anything a user can mend: one sentence.
    """
    from pumice.data import open_splits
    from pumice.data.splits import CALIBRATION_SAMPLES
    from pumice.measure import choose_metrics, pick_runtime
    from pumice.model import clone, load, simplify

    clock = Clock()
    ledger, progress = Ledger(), progress or Silent()
    recipe = _recipe(recipe).resolved()
    original = load(model, ledger=ledger) if isinstance(model, str | Path) else clone(model)
    name = Path(model).name if isinstance(model, str | Path) else (model.graph.name or "model")
    registry().notify("pumice_run_started", model_name=name, recipe=recipe)
    engine = pick_runtime(runtime)
    wanted = max((getattr(step, "samples", 0) for step in recipe.steps), default=0) or CALIBRATION_SAMPLES
    trains = any(Need.TRAINING in s.needs for step in recipe.steps for s in (step, *step.strategies()))
    splits = None
    if data is not None:
        splits = open_splits(data, original, test=test, calibration_samples=wanted, training=trains)
    if splits is None:
        _require_no_data(recipe)
    chosen = choose_metrics(original, splits.test if splits else None, metrics)
    context = RunContext(
        calibration=splits.calibration if splits else None,
        test=splits.test if splits else None,
        training=splits.training if splits else None,
        original=original,
        metrics=tuple(chosen.metrics),
        runtime=engine,
        ledger=ledger,
        seed=seed,
        threads=threads,
        progress=progress,
        notes=[*(splits.notes if splits else ()), *chosen.notes],
    )
    clock.lap("load")
    current = clone(original)
    simplify(current, ledger, fold=not any(Need.TRAINING in step.needs for step in recipe.steps))
    clock.lap("simplify")
    current = run_steps(recipe.steps, current, name, context, lap=clock.lap)
    return account(model, current, recipe, context, clock, measure)


def account(
    model: str | Path | ir.Model, changed: ir.Model, recipe: Recipe, context: RunContext, clock: Clock, measure: bool
) -> Result:
    """Measure what a recipe made of a model, and account for it.

    Args:
        model: as `compress` was given it.
        changed: what the recipe made of it.
        recipe: the recipe.
        context: of the run that made it; it has the original.
        clock: has the phases of the run so far.
        measure: False skips latency and memory.
    """
    from pumice.diagnose import layer_errors
    from pumice.measure import compare

    original = context.original
    assert original is not None
    comparison = compare(
        Path(model) if isinstance(model, str | Path) else original,
        changed,
        context.test,
        runtime=context.runtime,
        threads=context.threads or 1,
        metrics=context.metrics,
        latency=measure,
        memory=measure,
        progress=context.progress,
    )
    clock.lap("measure")
    layers = layer_errors(original, changed, context.calibration, context.runtime, progress=context.progress)
    clock.lap("diagnose")
    result = Result(
        name=Path(model).name if isinstance(model, str | Path) else (model.graph.name or "model"),
        model=changed,
        original=original,
        recipe=recipe,
        ledger=context.ledger,
        measurements=comparison,
        layers=tuple(layers),
        notes=tuple(context.notes),
        seconds=clock.laps,
        runtime=context.runtime.name,
        seed=context.seed,
    )
    registry().notify("pumice_run_finished", result=result)
    return result


def _recipe(spec: Recipe | str | Path | Mapping[str, Any] | None) -> Recipe:
    if spec is None:
        return Recipe.default()
    if isinstance(spec, Recipe):
        return spec
    return Recipe.read(spec) if isinstance(spec, str | Path) else Recipe.from_dict(spec)


def _require_no_data(recipe: Recipe) -> None:
    from pumice.errors import DataError

    for step in recipe.steps:
        for strategy in step.strategies():
            if Need.CALIBRATION in strategy.needs:
                raise DataError(
                    f"{strategy.kind} '{strategy.name}' needs calibration data: give it with --data (data=)"
                )


def run_steps(
    steps: Sequence[Step],
    model: ir.Model,
    name: str,
    context: RunContext,
    *,
    first: int = 0,
    after: Callable[[int, ir.Model], None] | None = None,
    lap: Callable[[str], Any] | None = None,
) -> ir.Model:
    """The model after all steps but those that were rolled back.

    Args:
        steps: all of the recipe.
        model: what the first of them that is left to run works on; left unchanged.
        name: of the model, for people.
        context: shared by the steps; its ledger and its notes grow.
        first: steps that have run already.
        after: told how many steps have run, and the model then, unless one was rolled back before.
        lap: told the name of every step when it is over.

    Raises:
        BudgetExceeded: every step was rolled back.
    """
    from pumice.model import simplify

    rolled_back = []
    training = [Need.TRAINING in step.needs for step in steps]
    for number, step in enumerate(steps[first:], first):
        began = time.perf_counter()
        if any(training[:number]) and not any(training[number:]):
            simplify(model, context.ledger)  # what training needed apart is folded for those that come after it
        try:
            model = _run_step(step, model, name, context)
        except BudgetExceeded as error:
            rolled_back.append(error)
            context.ledger.declined(step.name, "model", "", str(error))
            context.notes.append(f"step '{step.name}' was rolled back: {error}")
        if lap is not None:
            lap(step.name)
        seconds = time.perf_counter() - began
        registry().notify("pumice_step_finished", step=step.name, ledger=context.ledger, seconds=seconds)
        if after is not None and not rolled_back:
            after(number + 1, model)
    if len(rolled_back) == len(steps):
        raise rolled_back[0]
    return model


def _run_step(step: Step, model: ir.Model, name: str, context: RunContext) -> ir.Model:
    """The model after one step; the ledger and the notes of the run grow only if it succeeds."""
    from pumice.model import remove_unread

    own = attrs.evolve(context, ledger=Ledger(), notes=[])
    changed = step.run(model, own)
    if not own.ledger.of(step.name, "applied"):
        raise NothingChanged(
            f"step '{step.name}' changed nothing in '{name}': {_why(own.ledger)}; leave the step out, or change what "
            "these reasons speak of"
        )
    remove_unread(changed)
    context.ledger.extend(own.ledger)
    context.notes.extend(own.notes)
    return changed


def _why(ledger: Ledger) -> str:
    """The most frequent reasons for leaving nodes alone."""
    reasons: dict[str, int] = {}
    for entry in ledger:
        reasons[entry.reason] = reasons.get(entry.reason, 0) + 1
    top = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:3]
    return "; ".join(f"{reason} ({count} nodes)" for reason, count in top) or "it found no node to work on"


@attrs.define
class Clock:
    """The wall time of the phases of a run."""

    laps: dict[str, float] = attrs.field(factory=dict)
    _last: float = attrs.field(factory=time.perf_counter)

    def lap(self, name: str) -> float:
        now = time.perf_counter()
        self.laps[name] = round(self.laps.get(name, 0.0) + now - self._last, 3)
        self._last = now
        return self.laps[name]
