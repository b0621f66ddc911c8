"""The laboratory: runs one recipe after another on one model, and measures what comes out.

Fidelity grows only as a recipe deserves it. Its steps run (those that an earlier recipe began with are taken from
`Prefixes`); then a look at `QUICK` samples stops what is plainly too inaccurate (the 95% interval of its drop lies
above the limit); what is left is scored on all samples of the search, and timed. A recipe has a time to do so, and what
computes for longer is ended: where it tells how far it is, or else wherever it is (`ended_after`). What it waits for
others is counted apart, and may be as long again.

Data are kept apart: what calibrates and trains, what the search measures on, and what is *held out* for the verdict.
Times are taken while nothing else computes: every recipe holds a lock of the machine, shared with others while it
computes, alone while it is timed.

A laboratory is plain data, so it travels to other processes and machines; models and data are opened where it works.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from pumice.data.splits import CALIBRATION_SAMPLES
from pumice.errors import OutOfTime, PumiceError
from pumice.ledger import Ledger
from pumice.progress import Limited, Progress, Silent
from pumice.recipe import Recipe
from pumice.registry import registry
from pumice.search.machine import Wait, computing, measuring
from pumice.search.overdue import ended_after
from pumice.search.prefixes import Prefix, Prefixes
from pumice.search.trial import Figures, Trial, cost, violation
from pumice.steps import Auto
from pumice.strategy import Metric, Need, Runtime, Session

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from pumice.data import Dataset
    from pumice.measure import Evaluation
    from pumice.pipeline import RunContext
    from pumice.steps import Step

QUICK, NOISED = 128, 16
"""Samples of the first look, and those that tell the noise of the outputs."""
LATENCY_SECONDS = 1.0
"""Time to spend on the latency of each model."""
KEPT = 256_000_000
"""Bytes of the original's answers that are kept."""
FEWEST_TO_HALVE = 200
"""Samples below which nothing is held out: half of them would tell nothing."""


@attrs.frozen(kw_only=True)
class Laboratory:
    """What recipes are tried on."""

    model: Path
    """The original."""
    source: Any
    """Data, as for `compress`."""
    test: Any
    limits: Auto
    folder: Path
    """For the models of trials, and for prefixes."""
    runtime: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]
    threads: int
    seed: int
    samples: int = CALIBRATION_SAMPLES
    """That calibrate most recipes; those that ask for as many as `compress` takes have these."""

    def run(self, trial: Trial, seconds: float) -> Trial:
        """Try the recipe of a trial within a time. What is wrong with it is in the result; nothing is raised for it."""
        began, wait = time.perf_counter(), Wait(most=seconds)
        trial = attrs.evolve(trial, state="failed")
        try:
            with computing(wait), ended_after(seconds):
                trial, lost = self._looked_at(trial, Limited(seconds))
            if lost is not None:
                with measuring(wait), ended_after(seconds - (time.perf_counter() - began - wait.seconds)):
                    trial = self._measured(trial, lost)
        except OutOfTime as error:
            reason = str(error) or f"it took more than the {seconds:.3g} s it had"
            trial = attrs.evolve(trial, state="late", reason=reason)
        except PumiceError as error:
            trial = attrs.evolve(trial, reason=str(error))
        except Exception as error:  # a plugin's defect must not end the search
            trial = attrs.evolve(trial, reason=f"{type(error).__name__}: {error}")
        return attrs.evolve(trial, seconds=time.perf_counter() - began - wait.seconds, waited=wait.seconds)

    def _looked_at(self, trial: Trial, time_left: Progress) -> tuple[Trial, Lost | None]:
        """The trial, and what its model lost; None where a look was enough."""
        from pumice.model import save

        recipe = Recipe.from_dict(trial.recipe, "the proposed recipe").resolved()
        trial = attrs.evolve(trial, recipe=recipe.to_dict())
        model = self.compressed(recipe, time_left).model
        session = self.engine.open(model)
        lost = self._lost(session, self.evidence.search, QUICK, time_left)
        trial = attrs.evolve(trial, drop=lost.drop, noise=self._noise(session))
        if lost.low > self.limits.max_drop:
            found = f"on {lost.samples} samples it loses {lost.drop:.4f}, {lost.low:.4f} at least"
            return attrs.evolve(trial, state="stopped", reason=found), None
        if lost.samples < self.evidence.search.count():
            lost = self._lost(session, self.evidence.search, None, time_left)
        save(model, self._model_of(recipe))
        return trial, lost

    def _measured(self, trial: Trial, lost: Lost) -> Trial:
        path = self._model_of(Recipe.from_dict(trial.recipe))
        figures = self._timed(path, lost, self.evidence.search)
        trial = attrs.evolve(trial, state="measured", figures=figures, drop=lost.drop, model=path.name)
        return attrs.evolve(trial, cost=cost(self.limits, figures), violation=violation(self.limits, figures))

    def _model_of(self, recipe: Recipe) -> Path:
        return self.folder / "models" / f"{number_of(recipe)}.onnx"

    # --- running a recipe ---------------------------------------------------------------------------------------------

    def compressed(self, recipe: Recipe, progress: Progress) -> Prefix:
        """The model after the steps of a recipe, and its account."""
        from pumice.model import clone, simplify
        from pumice.pipeline import run_steps

        steps, wanted = recipe.steps, _calibrates(recipe.steps)
        kept = Prefixes(self.folder / "prefixes", f"{self.origin} {wanted}")
        context = self.context(recipe, progress, self.evidence.search)
        for first in range(len(steps), 0, -1):
            found = kept.get(kept.key(steps[:first], _unfolded(steps[first:])))
            if found is not None:
                context.ledger.extend(found.ledger)
                context.notes.extend(found.notes)
                model = found.model
                break
        else:
            first, model = 0, clone(self.original)
            simplify(model, context.ledger, fold=not _unfolded(steps))

        def keep(count: int, changed: ir.Model) -> None:
            key = kept.key(steps[:count], _unfolded(steps[count:]))
            kept.put(key, Prefix(changed, context.ledger, context.notes))

        model = run_steps(steps, model, self.model.name, context, first=first, after=keep)
        return Prefix(model, context.ledger, context.notes)

    def context(self, recipe: Recipe, progress: Progress, test: Dataset) -> RunContext:
        """What the steps of a recipe share; `test` measures."""
        from pumice.pipeline import RunContext

        return RunContext(
            calibration=self.evidence.calibration[_calibrates(recipe.steps), _trains(recipe.steps)],
            test=test,
            training=self.evidence.training,
            original=self.original,
            metrics=self.scored_by,
            runtime=self.engine,
            ledger=Ledger(),
            seed=self.seed,
            threads=self.threads,
            progress=progress,
        )

    # --- measuring ----------------------------------------------------------------------------------------------------

    def verify(self, trial: Trial) -> tuple[Figures, float]:
        """The figures of a trial's model on the data held out, and the p value of what it lost."""
        path = self.folder / "models" / trial.model
        with computing():
            lost = self._lost(self.engine.open(path), self.evidence.held_out, None, Silent())
        with measuring():
            return self._timed(path, lost, self.evidence.held_out), lost.p

    def _noise(self, session: Session) -> float:
        """What the outputs have of noise, as a share of their signal."""
        from pumice.measure.budget import Drift, rows

        drift = Drift()
        for feeds, _ in rows(self.evidence.search, NOISED):
            drift.update(self.known_answers.run(feeds), session.run(feeds))
        return float(drift.ratio)

    def _lost(self, session: Session, data: Dataset, limit: int | None, progress: Progress) -> Lost:
        from pumice.measure import evaluate_many

        sessions = {"before": self.known_answers, "after": session}
        found = evaluate_many(sessions, data, self.scored_by, reference="before", limit=limit, progress=progress)
        return Lost.of(found["before"], found["after"])

    def _timed(self, path: Path, lost: Lost, data: Dataset) -> Figures:
        """What was lost, with size, speed and, if there is a limit on it, memory."""
        from pumice.measure import compare

        found = compare(
            self.model,
            path,
            data.select([0]),
            runtime=self.engine,
            threads=self.threads,
            metrics=["cosine"],
            memory=bool(self.limits.memory),
            seconds=LATENCY_SECONDS,
        )
        assert found.speedup is not None
        assert found.after.latency is not None
        return Figures(
            drop=lost.drop,
            low=lost.low,
            high=lost.high,
            samples=lost.samples,
            latency=found.after.latency.median,
            speedup=found.speedup.median,
            file_bytes=found.after.file_bytes,
            compression=found.compression,
            memory=None if found.after.memory is None else found.after.memory.model,
        )

    # --- what is opened where it works --------------------------------------------------------------------------------

    @functools.cached_property
    def evidence(self) -> Evidence:
        return Evidence.of(self.source, self.model, self.test, self.samples)

    @functools.cached_property
    def original(self) -> ir.Model:
        from pumice.model import load

        return load(self.model)

    @functools.cached_property
    def known_answers(self) -> KnownAnswers:
        return KnownAnswers(self.engine.open(self.model))

    @functools.cached_property
    def origin(self) -> str:
        """A hash of what every recipe starts from."""
        from pumice.model import fingerprint

        parts = fingerprint(self.original), self.evidence.fingerprint, str(self.seed)
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    @property
    def engine(self) -> Runtime:
        return registry().make(Runtime, self.runtime)

    @property
    def scored_by(self) -> tuple[Metric, ...]:
        return tuple(registry().make(Metric, metric) for metric in self.metrics)


@attrs.frozen(eq=False)
class KnownAnswers:
    """A session of the original that computes every answer once, as long as they take `KEPT` bytes at most together."""

    session: Session
    answers: dict[bytes, dict[str, NDArray[Any]]] = attrs.field(factory=dict)

    @property
    def description(self) -> str:
        return self.session.description

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        key = _digest(feeds)
        if key in self.answers:
            return self.answers[key]
        found = self.session.run(feeds)
        held = sum(array.nbytes for known in (*self.answers.values(), found) for array in known.values())
        if held <= KEPT:
            self.answers[key] = found
        return found


def _digest(feeds: Mapping[str, NDArray[Any]]) -> bytes:
    whole = hashlib.blake2b(digest_size=16)
    for name, array in feeds.items():
        whole.update(f"{name} {array.dtype} {array.shape} ".encode())
        whole.update(array.tobytes() if array.dtype.kind != "O" else repr(array.tolist()).encode())
    return whole.digest()


def number_of(recipe: Recipe) -> str:
    """A short name for a recipe, by its content."""
    return hashlib.sha256(recipe.to_toml().encode()).hexdigest()[:16]


def _calibrates(steps: tuple[Step, ...]) -> int:
    """Samples that calibrate a recipe, as `compress` takes them."""
    return max((getattr(step, "samples", 0) for step in steps), default=0) or CALIBRATION_SAMPLES


def _trains(steps: tuple[Step, ...]) -> bool:
    return any(Need.TRAINING in used.needs for step in steps for used in (step, *step.strategies()))


def _unfolded(steps: tuple[Step, ...]) -> bool:
    """Whether a model is left unfolded for these steps, as `compress` leaves it: strategies that train do not ask."""
    return any(Need.TRAINING in step.needs for step in steps)


@attrs.frozen(kw_only=True)
class Lost:
    """What was lost of the score that counts, the ends of its 95% interval, and the p value of the change.

    With labels it is the difference of the scores, of an error without upper end the relative one. Without, it is what
    is missing to full agreement.
    """

    drop: float
    low: float
    high: float
    p: float = 1.0
    samples: int

    @classmethod
    def of(cls, before: Evaluation, after: Evaluation) -> Lost:
        from pumice.measure import mcnemar

        counts = after.primary
        if counts is None:
            raise PumiceError("nothing measures what a recipe costs: give data, with labels if there are any")
        known = before.scores.get(counts.name)
        if known is None:
            low, high = sorted((1.0 - counts.low, 1.0 - counts.high))
            return cls(drop=1.0 - counts.mean, low=low, high=high, samples=after.samples)
        test = mcnemar(known, counts)
        scale = -1.0 if counts.metric.higher_is_better else 1.0 / (abs(known.mean) or 1.0)
        low, high = (_number(end, test.difference) for end in sorted((scale * test.low, scale * test.high)))
        return cls(drop=scale * test.difference + 0.0, low=low, high=high, p=test.p, samples=after.samples)


def _number(end: float, otherwise: float) -> float:
    return float(otherwise if np.isnan(end) else end) + 0.0  # a zero without sign


# --- data -------------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Evidence:
    """The parts of the data."""

    calibration: Mapping[tuple[int, bool], Dataset]
    """What calibrates recipes, by how many samples and by whether they train: those that `compress` would take."""
    training: Dataset
    search: Dataset
    held_out: Dataset
    unseen: Dataset
    """What the two were taken from."""
    notes: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        calibrating = (self.calibration[CALIBRATION_SAMPLES, trains] for trains in (False, True))
        return " ".join(part.fingerprint() for part in (*calibrating, self.training, self.unseen))

    @classmethod
    def of(cls, source: Any, model: Path, test: Any, samples: int = CALIBRATION_SAMPLES) -> Evidence:
        """The parts of some data; `samples` calibrate, or as many as `compress` would take."""
        from pumice.data import open_splits
        from pumice.data.dataset import Selection
        from pumice.data.splits import Splits, split

        trained = open_splits(source, model, test=test, training=True)
        unseen, calibration = trained.test, {}
        alone = not isinstance(source, Splits) and isinstance(unseen, Selection) and _halves(trained.training, unseen)
        for count in {samples, CALIBRATION_SAMPLES}:
            opened = trained
            if count != CALIBRATION_SAMPLES:
                opened = open_splits(source, model, test=test, training=True, calibration_samples=count)
            calibration[count, True] = calibration[count, False] = opened.calibration
            if alone:
                assert isinstance(unseen, Selection)
                calibration[count, False] = plain = split(unseen.base, count).calibration
                calibrates = plain.indices if isinstance(plain, Selection) else ()
                unseen = unseen.base.select(np.setdiff1d(unseen.indices, calibrates))
        notes = list(trained.notes)
        search = held_out = unseen
        if unseen.count() >= FEWEST_TO_HALVE:
            search, held_out = unseen.split(unseen.count() // 2)
        else:
            notes.append(f"too few samples ({unseen.count()}) to hold any back: the verdict is on those of the search")
        return cls(
            calibration=calibration,
            training=trained.training,
            search=search,
            held_out=held_out,
            unseen=trained.test,
            notes=tuple(notes),
        )


def _halves(one: Dataset, other: Dataset) -> bool:
    """Whether two datasets are parts of one."""
    return getattr(one, "base", None) is getattr(other, "base", one)
