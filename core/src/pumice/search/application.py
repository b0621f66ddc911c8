"""The search: propose, try, remember, until the time is over; then the verdict.

The loop knows nothing of how proposals are made. Openings come first, then whatever the searcher proposes from the
trials so far; a recipe that was tried before is not run again but remembered as repeated, so that a searcher, which is
a function of the history alone, moves on. With one worker the course of a search is a function of the model, the data,
the settings and the figures it measured.

A trial may take a share of the time that is left, so that one slow recipe does not cost the search all others, and none
but the very first, without which there is no answer, goes on beyond the time that the verdict needs. What was too late
in one search is tried again when a longer one goes on from it.

The winner's model is the one that was measured: what its steps made and said is kept, and nothing runs again for it.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from pumice.errors import BudgetExceeded, DataError, PumiceError, RecipeError
from pumice.progress import Progress, Silent
from pumice.recipe import Recipe
from pumice.registry import registry
from pumice.search.guide import Guide
from pumice.search.laboratory import Laboratory, number_of
from pumice.search.machine import computing
from pumice.search.overdue import AGAIN, GRACE
from pumice.search.pace import Pace
from pumice.search.prefixes import Prefix
from pumice.search.space import Proposal, Space
from pumice.search.study import Study
from pumice.search.trial import Trial, front
from pumice.search.verdict import CANDIDATES, Verdict, candidates, judge
from pumice.search.workers import HERE, Workers, workers
from pumice.steps import Auto, default_searcher

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.pipeline import Result, RunContext

REPEATS = 25
"""Proposals in a row that were tried before: after them the space counts as exhausted."""
GENEROUS = 4
"""A trial may take this many times what the quickest took, whatever is left."""
HELD_OUT = "accuracy is measured on the samples that the verdict is on: none of them chose the recipe"
OVERRUN = 60.0
"""Seconds that a trial may take beyond what there is, as long as nothing was measured."""
STATES = ("measured", "stopped", "late", "failed")


@attrs.frozen(kw_only=True, eq=False)
class Found:
    """What a search found, and how."""

    model: str | Path | ir.Model
    """The original."""
    laboratory: Laboratory
    verdict: Verdict
    made: Prefix | None
    """What the winner's steps made and said; None if there is no winner."""
    trials: tuple[Trial, ...]
    space: Space
    advice: tuple[str, ...]
    """What the analysis of the model says."""
    notes: tuple[str, ...]
    seconds: float
    judging: float
    """Seconds of them for the verdict."""
    earlier: int = 0
    """How many of the trials are of courses before this one."""

    @property
    def limits(self) -> Auto:
        return self.laboratory.limits

    @property
    def recipe(self) -> Recipe | None:
        """The winner's, None if there is none."""
        winner = self.verdict.winner
        return None if winner is None else Recipe.from_dict(winner.trial.recipe)

    @property
    def front(self) -> list[Trial]:
        return front(self.trials)

    @property
    def overhead(self) -> float:
        """Share of the time that was not spent on trials; above 0 also where trials ran at once."""
        spent = sum(trial.seconds + trial.waited for trial in self.trials[self.earlier :]) / self.limits.workers
        return max(0.0, 1.0 - spent / self.seconds) if self.seconds else 0.0

    @property
    def course(self) -> str:
        """How many trials there were, and where the time went."""
        told = f"{self.tally}; {self.seconds:.0f} s, {self.overhead:.1%} of them beside trials"
        told += f" ({self.judging / self.seconds:.1%} for the verdict)"
        waited = sum(trial.waited for trial in self.trials[self.earlier :])
        return f"{told}; trials waited {waited:.0f} s for others to leave the cores" if waited >= 1.0 else told

    def account(self, progress: Progress | None = None) -> Result:
        """The winner's model and its account, measured on the samples that the verdict is on.

        Raises:
            BudgetExceeded: no recipe keeps the limits.
        """
        from pumice.model.loading import LEDGER
        from pumice.pipeline import Clock, account

        recipe, made, laboratory = self.recipe, self.made, self.laboratory
        if recipe is None or made is None:
            raise BudgetExceeded(self.verdict.sentence())
        context = laboratory.context(recipe, progress or Silent(), laboratory.evidence.held_out)
        context.ledger.entries += [*laboratory.original.meta[LEDGER], *made.ledger]
        context.notes.extend([*self.notes, *made.notes, *([HELD_OUT] if self.verdict.unseen else [])])
        return account(self.model, made.model, recipe, context, Clock({"search": round(self.seconds, 3)}), True)

    @property
    def tally(self) -> str:
        """How many trials ended in which way."""
        counts = {state: sum(trial.state == state for trial in self.trials) for state in STATES}
        return ", ".join(f"{count} {state}" for state, count in counts.items() if count)

    def summary(self) -> str:
        """The verdict, the front and the advice, in lines."""
        shown = [f"  trial {t.number}: {t.told}: {t.shape}" for t in self.front]
        out = [f"left out: {one.kind} '{one.name}': {one.reason}" for one in self.space.left_out]
        verdict = self.verdict.sentence()
        again = [f"  {line}" for line in self.verdict.reasons()]
        lines = [f"{verdict[:1].upper()}{verdict[1:]}", *(["measured again:", *again] if again else [])]
        lines.append(f"trials: {self.course}")
        advice = ["what the model is made of:", *(f"  {sentence}" for sentence in self.advice)] if self.advice else []
        return "\n".join([*lines, *(["front:", *shown] if shown else []), *advice, *self.notes, *out])

    def to_json(self) -> dict[str, Any]:
        """Everything, for machines."""
        return {
            "verdict": self.verdict.sentence(),
            "winner": None if self.verdict.winner is None else attrs.asdict(self.verdict.winner),
            "verified": [attrs.asdict(one) for one in self.verdict.verified],
            "limits": self.limits.settings(),
            "trials": [{k: None if v == math.inf else v for k, v in t.to_json().items()} for t in self.trials],
            "front": [trial.number for trial in self.front],
            "left_out": [attrs.asdict(one) for one in self.space.left_out],
            "advice": list(self.advice),
            "notes": list(self.notes),
            "seconds": self.seconds,
            "overhead": self.overhead,
            "judging": self.judging,
        }


def search(
    model: str | Path | ir.Model,
    data: Any,
    limits: Auto | Mapping[str, Any] | None = None,
    *,
    test: Any = None,
    metrics: Sequence[Any] | None = None,
    runtime: Any = None,
    threads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Found:
    """Search for the best recipe for a model.

    Args:
        model: path of an ONNX file, or a loaded model (left unchanged).
        data: as for `compress`; what is not used to calibrate or to train is halved: one half for the search, one for
            the verdict.
        limits: what the result must keep, and how long to search: an `Auto` or its knobs.
        test: other data to measure on.
        metrics: as for `compress`; the first is the score that counts.
        runtime: runtime to calibrate and measure with; None takes the best installed.
        threads: threads of one inference when timing; None is 1.
        seed: seeds whatever is random.
        progress: shows progress; None is silent.

    Raises:
        PumiceError: anything a user can mend: one sentence.
    """
    from pumice.diagnose.analysis import analyse
    from pumice.measure import choose_metrics, pick_runtime
    from pumice.model import save

    limits = _settled(limits)
    began = time.perf_counter()
    progress = progress or Silent()
    with _folder(limits) as folder:
        path = Path(model) if isinstance(model, str | Path) else folder / "original.onnx"
        if not isinstance(model, str | Path):
            save(model, path)
        engine = pick_runtime(runtime)
        laboratory = Laboratory(
            model=path,
            source=data,
            test=test,
            limits=limits,
            folder=folder,
            runtime={"name": engine.name, **engine.settings()},
            metrics=(),
            threads=threads or 1,
            seed=seed,
        )
        chosen = choose_metrics(laboratory.original, laboratory.evidence.search, metrics)
        told = tuple({"name": metric.name, **metric.settings()} for metric in chosen.metrics)
        laboratory = attrs.evolve(laboratory, metrics=told)
        study = Study.open(folder, _question(laboratory))
        pace = Pace.of(laboratory, began).going_on(study.trials())
        laboratory = attrs.evolve(laboratory, samples=pace.samples)
        guide = Guide.of(laboratory, pace)
        with study.alone(), workers(laboratory) as pool:
            loop = _Loop(limits, study, pool, guide, pace, progress)
            trials = loop.run()
        judged_from = time.perf_counter()
        verdict = judge([t for t in trials if not t.model or (study.models / t.model).exists()], laboratory, pace.end)
        judging, evidence = time.perf_counter() - judged_from, laboratory.evidence
        winner = verdict.winner
        if winner is not None:
            study.add(attrs.evolve(winner.trial, won=True))
        made = None if winner is None else laboratory.compressed(Recipe.from_dict(winner.trial.recipe), progress)
        analysis = analyse(laboratory.original, next(iter(evidence.search.samples([0]))).feeds, engine)
    return Found(
        model=model,
        laboratory=laboratory,
        verdict=verdict,
        made=made,
        trials=tuple(trials),
        space=guide.space,
        advice=analysis.advice,
        notes=(*evidence.notes, *chosen.notes, *loop.trouble),
        seconds=time.perf_counter() - began,
        judging=judging,
        earlier=loop.earlier,
    )


def apply_best(limits: Auto, model: ir.Model, context: RunContext) -> ir.Model:
    """The step `auto` of a recipe: search on the run's own data, and take the winner's steps.

    Raises:
        BudgetExceeded: no recipe keeps the limits.
        DataError: there are no data.
        RecipeError: it asks for more than one worker here, to whom the data of a run cannot travel.
    """
    from pumice.data.splits import Splits

    if limits.workers > 1 or limits.executor != HERE:
        told = f"step '{limits.name}' of a recipe tries one recipe at a time, where it runs"
        raise RecipeError(f"{told}: leave out workers and executor, or search with pumice auto and run what it finds")
    if context.calibration is None or context.test is None:
        raise DataError(f"step '{limits.name}' needs data to choose by: give some with --data (data=)")
    splits = Splits(
        calibration=context.calibration, test=context.test, training=context.training or context.calibration, note=""
    )
    found = search(
        model,
        splits,
        limits,
        metrics=context.metrics,
        runtime=context.runtime,
        threads=context.threads,
        seed=context.seed,
        progress=context.progress,
    )
    context.notes.append(found.verdict.sentence())
    if found.recipe is None or found.made is None:
        raise BudgetExceeded(found.verdict.sentence())
    details = {"recipe": found.recipe.to_dict(), "trials": len(found.trials)}
    context.ledger.note(limits.name, f"{found.verdict.sentence()}; its steps follow", **details)
    context.ledger.extend(found.made.ledger)
    context.notes.extend(found.made.notes)
    return found.made.model


def _settled(limits: Auto | Mapping[str, Any] | None) -> Auto:
    """The limits with a searcher.

    Raises:
        PumiceError: no searcher is installed, or nothing ends the search.
    """
    if not isinstance(limits, Auto):
        limits = Auto.configure(registry().resolve(Auto, limits or {}))
    if not limits.budget and not limits.trials:
        raise PumiceError("nothing ends the search: give a budget (minutes) or a number of trials")
    return attrs.evolve(limits, searcher=limits.searcher or default_searcher())


@contextmanager
def _folder(limits: Auto) -> Iterator[Path]:
    """Where the study lies: where the user wants it, or somewhere for as long as the search lasts."""
    if limits.study:
        folder = Path(limits.study)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PumiceError(f"cannot keep a study in '{folder}': {error.strerror}; choose another folder") from None
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="pumice-search-") as temporary:
        yield Path(temporary)


def _question(laboratory: Laboratory) -> dict[str, Any]:
    """What a study answers: with another of these, its trials mean nothing."""
    ends = {"budget", "trials", "workers", "executor", "study", "searcher"}
    limits = {key: value for key, value in laboratory.limits.settings().items() if key not in ends}
    return {
        "model and data": laboratory.origin,
        "limits": limits,
        "metrics": laboratory.metrics,
        "runtime": laboratory.runtime,
        "threads": laboratory.threads,
        "plugins": sorted(str(origin) for origin in registry().plugins),
    }


def _forget_models(folder: Path, trials: Sequence[Trial], max_drop: float) -> None:
    """Keep the models of the front, and of what a verdict may ask for, now or when the search has gone on."""
    wanted = {trial.model for trial in [*front(trials), *candidates(trials, max_drop)[: 2 * CANDIDATES]]}
    for name in {trial.model for trial in trials if trial.model} - wanted:
        for path in folder.glob(f"{name}*"):
            path.unlink()


@attrs.define
class _Loop:
    """One course of a search."""

    limits: Auto
    study: Study
    pool: Workers
    guide: Guide
    pace: Pace
    progress: Progress
    history: list[Trial] = attrs.field(factory=list)
    tried: dict[str, Trial] = attrs.field(factory=dict)
    repeats: int = 0
    earlier: int = 0
    before: float = 0.0
    """Seconds that the courses before this one took."""
    latest: float = -math.inf
    """When the last trial must have ended, if that is after the deadline."""
    trouble: set[str] = attrs.field(factory=set)
    """Why there were no more proposals, where a searcher broke."""

    def run(self) -> list[Trial]:
        """All trials, those of an earlier course included."""
        self.history.extend(self.study.trials())
        self.earlier = len(self.history)
        self.before = max((trial.finished for trial in self.history), default=0.0)
        self.tried.update({_key(trial): trial for trial in self.history if trial.state not in ("late", "repeated")})
        pending: dict[Future[Trial], Trial] = {}
        with self.progress.task("search", total=self.limits.trials or None) as advance:
            while True:
                self.fill(pending)
                if not pending:
                    return self.history
                done, running = wait(pending, self.patience, FIRST_COMPLETED)
                if not done:
                    self.pool.end()
                for future in sorted(done or running, key=lambda f: pending[f].number):
                    self.finish(future if done else None, pending.pop(future))
                    advance()

    def fill(self, pending: dict[Future[Trial], Trial]) -> None:
        """Give work to every worker that is free, while there is time and anything new."""
        while len(pending) < self.limits.workers and self.may_begin(len(pending)):
            origin, proposal = self.next(pending.values())
            if proposal is None:
                return
            number = len(self.history) + len(pending) + 1
            begun = Trial(number=number, values=proposal.values, recipe=proposal.recipe, origin=origin, state="running")
            known = self.tried.get(_key(proposal))
            if known is not None or any(_key(other) == _key(proposal) for other in pending.values()):
                if pending or known is None:
                    return
                self.repeat(begun, known)
                continue
            seconds = self.seconds if pending or self.quickest else self.seconds + OVERRUN
            self.latest = max(self.latest, time.perf_counter() + seconds)
            pending[self.pool.submit(begun, seconds)] = attrs.evolve(begun, finished=self.elapsed)

    @property
    def seconds(self) -> float:
        """What a trial that begins now may take; the first, which gives an answer at all, all there is.

        It is half of the time that is left with one worker, and more where others go on beside it.
        """
        left, share = self.pace.deadline - time.perf_counter(), self.limits.workers / (self.limits.workers + 1)
        return max(left * share, min(left, GENEROUS * self.quickest)) if self.history else left

    @property
    def patience(self) -> float | None:
        """Seconds to wait for a trial: what does not end by itself or by interruption is given up then."""
        end = max(self.pace.deadline, self.latest) + GRACE + AGAIN
        return None if math.isinf(end) else max(0.0, end - time.perf_counter())

    @property
    def elapsed(self) -> float:
        """Seconds from the start of the search."""
        return self.before + time.perf_counter() - self.pace.began

    @property
    def quickest(self) -> float:
        """Seconds of the quickest trial so far."""
        return min((trial.seconds for trial in self.history if trial.state == "measured"), default=0.0)

    def next(self, running: Iterable[Trial]) -> tuple[str, Proposal | None]:
        trials = [*self.history, *running]
        opening = self.guide.opening(trials, self.seconds, lambda proposal: _key(proposal) in self.tried)
        if opening is not None:
            return f"{opening.origin}{opening.reason}", opening.proposal
        searcher = self.limits.searcher
        assert searcher is not None
        try:
            with computing():
                return searcher.name, searcher.propose(self.guide.space, trials)
        except Exception as error:  # a plugin's defect must not cost what has been found
            self.trouble.add(f"searcher '{searcher.name}' broke and proposed no more: {type(error).__name__}: {error}")
            return searcher.name, None

    def may_begin(self, running: int) -> bool:
        enough = self.limits.trials and len(self.history) + running >= self.limits.trials
        first = not self.history and not running
        in_time = first or time.perf_counter() + self.quickest < self.pace.deadline
        return not enough and in_time and self.repeats < REPEATS

    def repeat(self, begun: Trial, known: Trial) -> None:
        """Remember a proposal that was tried before."""
        self.repeats += 1
        repeated = attrs.evolve(known, number=begun.number, values=begun.values, origin=begun.origin, seconds=0.0)
        repeated = attrs.evolve(repeated, state="repeated", finished=self.elapsed)
        self.history.append(repeated)
        self.study.add(repeated)

    def finish(self, future: Future[Trial] | None, begun: Trial) -> None:
        """Remember what a trial came to; None where it was given up."""
        lost = attrs.evolve(begun, seconds=self.elapsed - begun.finished)
        try:
            if future is None:
                trial = attrs.evolve(lost, state="late", reason="it did not end when its time was over")
            else:
                trial = future.result()
        except Exception as error:  # the worker died
            trial = attrs.evolve(lost, state="failed", reason=f"its worker was lost: {type(error).__name__}: {error}")
        self.repeats = 0
        trial = attrs.evolve(trial, finished=self.elapsed)
        self.study.add(trial)
        self.history.append(trial)
        self.tried[_key(begun)] = trial
        _forget_models(self.study.models, self.history, self.limits.max_drop)
        registry().notify("pumice_trial_finished", trial=trial)


def _key(of: Trial | Proposal) -> str:
    """What makes two proposals the same recipe."""
    return number_of(Recipe.from_dict(of.recipe).resolved())
