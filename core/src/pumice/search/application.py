"""The search: propose, try, remember, until the time is over; then the verdict.

The loop knows nothing of how proposals are made. Openings come first, then whatever the searcher proposes from the
trials so far; a recipe that was tried before is not run again but remembered as repeated, so that a searcher, which is
a function of the history alone, moves on. With one worker the course of a search is a function of the model, the data,
the settings and the figures it measured.

A trial may take a share of the time that is left, so that one slow recipe does not cost the search all others. What was
too late in one search is tried again when a longer one goes on from it.
"""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from pumice.errors import BudgetExceeded, PumiceError
from pumice.knobs import Int
from pumice.progress import Progress, Silent
from pumice.recipe import Recipe
from pumice.registry import registry
from pumice.search.laboratory import Evidence, Laboratory, number_of
from pumice.search.ladder import Ladder, most_epochs
from pumice.search.machine import computing
from pumice.search.openings import ORIGIN, Opening, singles
from pumice.search.passes import seconds_of_a_pass
from pumice.search.space import Proposal, Space
from pumice.search.study import Study
from pumice.search.trial import Trial, front
from pumice.search.verdict import Verdict, judge
from pumice.search.workers import Workers, workers
from pumice.steps import STEPS, Auto, Train, default_searcher
from pumice.strategy import Need

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.pipeline import RunContext

REPEATS = 25
"""Proposals in a row that were tried before: after them the space counts as exhausted."""
SPARED = 0.03
"""Share of the time that is kept for the verdict."""
GENEROUS = 4
"""A trial may take this many times what the quickest took, whatever is left."""
STATES = ("measured", "stopped", "late", "failed")


@attrs.frozen(kw_only=True)
class Found:
    """What a search found, and how."""

    limits: Auto
    verdict: Verdict
    trials: tuple[Trial, ...]
    space: Space
    advice: tuple[str, ...]
    """What the analysis of the model says."""
    notes: tuple[str, ...]
    seconds: float
    earlier: int = 0
    """How many of the trials are of courses before this one."""

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
        spent = sum(trial.seconds for trial in self.trials[self.earlier :]) / self.limits.workers
        return max(0.0, 1.0 - spent / self.seconds) if self.seconds else 0.0

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
        front = ["front:", *shown] if shown else []
        return "\n".join([f"{verdict[:1].upper()}{verdict[1:]}", f"trials: {self.tally}", *front, *self.notes, *out])

    def to_json(self) -> dict[str, Any]:
        """Everything, for machines."""
        return {
            "verdict": self.verdict.sentence(),
            "winner": None if self.verdict.winner is None else attrs.asdict(self.verdict.winner),
            "verified": [attrs.asdict(one) for one in self.verdict.verified],
            "limits": self.limits.settings(),
            "trials": [_finite(trial.to_json()) for trial in self.trials],
            "front": [trial.number for trial in self.front],
            "left_out": [attrs.asdict(one) for one in self.space.left_out],
            "advice": list(self.advice),
            "notes": list(self.notes),
            "seconds": self.seconds,
            "overhead": self.overhead,
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
    from pumice.model import load, save

    limits = _settled(limits)
    began = time.perf_counter()
    progress = progress or Silent()
    with _folder(limits) as folder:
        path = Path(model) if isinstance(model, str | Path) else folder / "original.onnx"
        if not isinstance(model, str | Path):
            save(model, path)
        engine = pick_runtime(runtime)
        original = load(path)
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
        evidence = laboratory.evidence
        chosen = choose_metrics(original, evidence.search, metrics)
        told = tuple({"name": metric.name, **metric.settings()} for metric in chosen.metrics)
        laboratory = attrs.evolve(laboratory, metrics=told)
        pass_seconds, untrained = _training_speed(original, evidence)
        space = _space(original, evidence, limits, pass_seconds, untrained)
        if not space.pipelines:
            reasons = "; ".join(f"{one.kind} '{one.name}': {one.reason}" for one in space.left_out)
            raise PumiceError(f"nothing that is installed can compress this model: {reasons}")
        study = Study.open(folder, _question(laboratory))
        analysis = analyse(original, next(iter(evidence.search.samples([0]))).feeds)
        ladder = Ladder.of(space, original, limits, evidence.training.count(), pass_seconds)
        end = began + 60.0 * limits.budget if limits.budget else float("inf")
        deadline = end - 60.0 * limits.budget * SPARED
        with workers(laboratory) as pool:
            loop = _Loop(limits, space, study, pool, ladder, deadline, began, progress)
            trials = loop.run()
        verdict = judge(trials, laboratory, end)
        _forget_models(folder, verdict, trials)
    return Found(
        limits=limits,
        verdict=verdict,
        trials=tuple(trials),
        space=space,
        advice=analysis.advice,
        notes=(*evidence.notes, *chosen.notes, *loop.trouble),
        seconds=time.perf_counter() - began,
        earlier=loop.earlier,
    )


def apply_best(limits: Auto, model: ir.Model, context: RunContext) -> ir.Model:
    """The step `auto` of a recipe: search on the run's own data, and take the winner's steps.

    Raises:
        BudgetExceeded: no recipe keeps the limits.
    """
    from pumice.data.splits import Splits
    from pumice.pipeline import run_steps

    assert context.calibration is not None
    assert context.test is not None
    splits = Splits(
        calibration=context.calibration,
        test=context.test,
        training=context.training or context.calibration,
        note="",
    )
    found = search(
        model,
        splits,
        attrs.evolve(limits, workers=1, executor="processes"),
        metrics=context.metrics,
        runtime=context.runtime,
        threads=context.threads,
        seed=context.seed,
        progress=context.progress,
    )
    context.notes.append(found.verdict.sentence())
    if found.recipe is None:
        raise BudgetExceeded(found.verdict.sentence())
    details = {"recipe": found.recipe.to_dict(), "trials": len(found.trials)}
    context.ledger.note(limits.name, f"{found.verdict.sentence()}; its steps follow", **details)
    return run_steps(found.recipe.steps, model, "the model", context)


def _finite(table: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON can say it: what was not measured has no cost."""
    return {key: None if value == float("inf") else value for key, value in table.items()}


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


def _training_speed(model: ir.Model, evidence: Evidence) -> tuple[float, str]:
    """Seconds of training on all samples once; infinite, and why, where the model cannot be trained."""
    try:
        return seconds_of_a_pass(model, evidence.training), ""
    except PumiceError as error:
        return float("inf"), str(error)


def _space(model: ir.Model, evidence: Evidence, limits: Auto, pass_seconds: float, untrained: str) -> Space:
    """What can be tried; trainings with as many passes as the budget has room for."""
    has = {Need.CALIBRATION, Need.GRADIENTS, Need.TEACHER, Need.TRAINING}
    trainings = {name: step for name, step in STEPS.items() if issubclass(step, Train)}
    epochs = most_epochs(limits, evidence.training.count(), pass_seconds)
    refuse, narrowed = {}, {}
    for name, step in trainings.items():
        domain = step.knobs()["epochs"].searched(step)
        assert isinstance(domain, Int)
        if untrained or not epochs:
            told = f"one pass over the data takes {pass_seconds:.0f} s, too long for a budget of {limits.budget:g} min"
            refuse[name] = untrained or told
        narrowed[name, "epochs"] = attrs.evolve(domain, high=max(domain.low, min(domain.high, epochs)))
    if evidence.training.labelled:
        has.add(Need.LABELS)
    else:
        refuse["train"] = "it needs labels"
    fixed = {("quantize", "max_drop"): limits.max_drop}
    return Space.of(model, frozenset(has), fixed, refuse, narrowed)


def _question(laboratory: Laboratory) -> dict[str, Any]:
    """What a study answers: with another of these, its trials mean nothing."""
    ends = {"budget", "trials", "workers", "executor", "study", "searcher"}
    limits = {key: value for key, value in laboratory.limits.settings().items() if key not in ends}
    return {
        "model and data": laboratory.origin,
        "limits": limits,
        "metrics": laboratory.metrics,
        "runtime": laboratory.runtime,
        "plugins": sorted(str(origin) for origin in registry().plugins),
    }


def _forget_models(folder: Path, verdict: Verdict, trials: Sequence[Trial]) -> None:
    """Keep the models of the front and of the verdict."""
    wanted = {trial.model for trial in front(trials)} | {one.trial.model for one in verdict.verified}
    for path in (folder / "models").iterdir():
        if path.name.split(".onnx")[0] + ".onnx" not in wanted:
            path.unlink()


@attrs.define
class _Loop:
    """One course of a search."""

    limits: Auto
    space: Space
    study: Study
    pool: Workers
    ladder: Ladder | None
    deadline: float
    began: float
    progress: Progress
    history: list[Trial] = attrs.field(factory=list)
    tried: dict[str, Trial] = attrs.field(factory=dict)
    repeats: int = 0
    earlier: int = 0
    trouble: set[str] = attrs.field(factory=set)
    """Why there were no more proposals, where a searcher broke."""

    def run(self) -> list[Trial]:
        """All trials, those of an earlier course included."""
        self.history.extend(self.study.trials())
        self.earlier = len(self.history)
        self.tried.update({_key(trial): trial for trial in self.history if trial.state not in ("late", "repeated")})
        waiting = deque(singles(self.space))
        pending: dict[Future[Trial], Trial] = {}
        with self.progress.task("search", total=self.limits.trials or None) as advance:
            while True:
                self.fill(pending, waiting)
                if not pending:
                    return self.history
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=lambda f: pending[f].number):
                    self.finish(future, pending.pop(future))
                    advance()

    def fill(self, pending: dict[Future[Trial], Trial], waiting: deque[Opening]) -> None:
        """Give work to every worker that is free, while there is time and anything new."""
        while len(pending) < self.limits.workers and self.may_begin(len(pending)):
            origin, proposal = self.next(waiting, pending.values())
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
            pending[self.pool.submit(begun, self.seconds)] = begun

    @property
    def seconds(self) -> float:
        """What a trial that begins now may take; the first, which gives an answer at all, whatever it needs.

        It is half of the time that is left with one worker, and more where others go on beside it.
        """
        left, share = self.deadline - time.perf_counter(), self.limits.workers / (self.limits.workers + 1)
        return max(left * share, min(left, GENEROUS * self.quickest)) if self.history else float("inf")

    @property
    def quickest(self) -> float:
        """Seconds of the quickest trial so far."""
        return min((trial.seconds for trial in self.history if trial.state == "measured"), default=0.0)

    def next(self, waiting: deque[Opening], running: Iterable[Trial]) -> tuple[str, Proposal | None]:
        trials = [*self.history, *running]
        opening = self.opening(waiting, trials)
        if opening is not None:
            return f"{ORIGIN}{opening.reason}", opening.proposal
        searcher = self.limits.searcher
        assert searcher is not None
        try:
            with computing():
                return searcher.name, searcher.propose(self.space, trials)
        except Exception as error:  # a plugin's defect must not cost what has been found
            self.trouble.add(f"searcher '{searcher.name}' broke and proposed no more: {type(error).__name__}: {error}")
            return searcher.name, None

    def opening(self, waiting: deque[Opening], trials: Sequence[Trial]) -> Opening | None:
        """The next one that is new, from the two courses in turn."""
        while waiting and _key(waiting[0].proposal) in self.tried:
            waiting.popleft()
        if self.ladder is not None and (len(trials) % 2 or not waiting):
            rung = self.ladder.rung(trials, self.seconds)
            if rung is not None and _key(rung.proposal) not in self.tried:
                return rung
        return waiting.popleft() if waiting else None

    def may_begin(self, running: int) -> bool:
        enough = self.limits.trials and len(self.history) + running >= self.limits.trials
        first = not self.history and not running
        in_time = first or time.perf_counter() + self.quickest < self.deadline
        return not enough and in_time and self.repeats < REPEATS

    def repeat(self, begun: Trial, known: Trial) -> None:
        """Remember a proposal that was tried before."""
        self.repeats += 1
        repeated = attrs.evolve(known, number=begun.number, values=begun.values, origin=begun.origin, seconds=0.0)
        repeated = attrs.evolve(repeated, state="repeated", finished=time.perf_counter() - self.began)
        self.history.append(repeated)
        self.study.add(repeated)

    def finish(self, future: Future[Trial], begun: Trial) -> None:
        try:
            trial = future.result()
        except Exception as error:  # the worker died
            trial = attrs.evolve(begun, state="failed", reason=f"its worker was lost: {type(error).__name__}: {error}")
        self.repeats = 0
        trial = attrs.evolve(trial, finished=time.perf_counter() - self.began)
        self.study.add(trial)
        self.history.append(trial)
        self.tried[_key(begun)] = trial
        registry().notify("pumice_trial_finished", trial=trial)


def _key(of: Trial | Proposal) -> str:
    """What makes two proposals the same recipe."""
    return number_of(Recipe.from_dict(of.recipe).resolved())
