"""Two models against each other: size, latency, memory, accuracy, in one process, interleaved, on a named runtime.

Both are opened from files, as they would be deployed; a model in memory is saved to a temporary one first. Without data
the latency is taken on random input made to the shapes of the inputs, and nothing is claimed about accuracy.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.data import ModelInputs
from pumice.errors import DataError, ModelError, PumiceError
from pumice.measure.accuracy import Evaluation, PairedTest, Score, evaluate_many, finite, mcnemar
from pumice.measure.latency import Latency, Ratio, interleaved_latency, speedup
from pumice.measure.memory import PeakMemory, file_bytes, peak_memory
from pumice.measure.runtimes import pick_runtime
from pumice.progress import Progress
from pumice.strategy import Metric, Runtime, Session

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.data import Dataset

Array = NDArray[Any]
SIGNIFICANT = 0.05
SAME_SIZE = 0.005
"""Sizes that differ by less than this share count as equal in words."""
TWINS = 4
"""Sessions of each model whose latency is taken, if both files together are smaller than `TWINS_BELOW` bytes."""
TWINS_BELOW = 50_000_000
TURNS_OF_MEMORY = 2
_TRIED_DIMENSIONS = (1, 16, 64, 128, 224, 512)
"""What dynamic dimensions of random input are set to, until the model accepts it."""


@attrs.frozen(kw_only=True)
class Side:
    """What was measured of one of the two models."""

    file_bytes: int
    weight_bytes: int
    latency: Latency | None
    memory: PeakMemory | None
    evaluation: Evaluation | None

    def to_json(self, batch: int) -> dict[str, Any]:
        return {
            "file_bytes": self.file_bytes,
            "weight_bytes": self.weight_bytes,
            "latency": None if self.latency is None else self.latency.to_json(),
            "throughput": None if self.latency is None else self.latency.throughput(batch),
            "memory": None if self.memory is None else self.memory.to_json(),
            "accuracy": {} if self.evaluation is None else {n: s.to_json() for n, s in self.evaluation.scores.items()},
        }


@attrs.frozen(kw_only=True)
class Comparison:
    """The account of two models; `before` is the original."""

    before: Side
    after: Side
    speedup: Ratio | None
    """Above 1: `after` is faster."""
    tests: Mapping[str, PairedTest]
    """By metric, for metrics that both models have."""
    runtime: str
    """What really ran."""
    threads: int
    batch: int
    """Samples in one inference of the latency."""
    samples: int
    """Samples that accuracy was measured on; 0 without data."""
    notes: tuple[str, ...] = ()
    """What the reader should know: what was assumed, left out, or could not be measured."""

    @property
    def agreement(self) -> Score | None:
        """How often both models decide alike, if that was measured."""
        return self._scores.get("agreement")

    @property
    def primary(self) -> Score | None:
        """The score of `after` that counts."""
        return next(iter(self._scores.values()), None)

    @property
    def compression(self) -> float:
        """File bytes before over after: above 1, `after` is smaller."""
        return self.before.file_bytes / self.after.file_bytes

    @property
    def drop(self) -> float | None:
        """How much worse the score that counts is after, in its own units; None for fidelity or without data."""
        primary = self.primary
        if primary is None or primary.name not in self.tests:
            return None
        change = self.tests[primary.name].difference
        return 0.0 - change if primary.metric.higher_is_better else change

    def headline(self) -> str:
        """One sentence. Its first words are the bad news, if the model became slower, larger or less accurate."""
        bad, good = self._verdicts()
        opening = _listed(good)
        if bad:
            opening = f"{_listed(bad)} than the original" + (f", though {opening}" if good else "")
        facts = [*self._speed(), self._size(), *self._memory(), *self._accuracy()]
        return f"{opening[:1].upper()}{opening[1:]}: {'; '.join(facts)} ({self.runtime})"

    def to_json(self) -> dict[str, Any]:
        """The whole account, for machines: bytes, milliseconds, samples a second."""
        return {
            "headline": self.headline(),
            "runtime": self.runtime,
            "threads": self.threads,
            "batch": self.batch,
            "samples": self.samples,
            "before": self.before.to_json(self.batch),
            "after": self.after.to_json(self.batch),
            "speedup": None
            if self.speedup is None
            else {**attrs.asdict(self.speedup), "verdict": self.speedup.verdict},
            "compression": self.compression,
            "drop": finite(self.drop),
            "agreement": None if self.agreement is None else self.agreement.to_json(),
            "tests": {name: test.to_json() for name, test in self.tests.items()},
            "notes": list(self.notes),
        }

    @property
    def _scores(self) -> Mapping[str, Score]:
        return {} if self.after.evaluation is None else self.after.evaluation.scores

    def _verdicts(self) -> tuple[list[str], list[str]]:
        """Bad and good news, in words."""
        bad, good = [], []
        if self.speedup is not None:
            verdict = self.speedup.verdict
            if verdict == "slower":
                bad.append("slower")
            else:
                good.append(f"{self.speedup.median:.2f}x faster" if verdict == "faster" else "as fast")
        if self.compression < 1.0 - SAME_SIZE:
            bad.append("larger")
        else:
            good.append(
                "of the same size" if self.compression < 1.0 + SAME_SIZE else f"{self.compression:.2f}x smaller"
            )
        drop, primary = self.drop, self.primary
        if drop is not None and primary is not None and drop > 0 and self.tests[primary.name].p < SIGNIFICANT:
            bad.append("less accurate")
        return bad, good

    def _speed(self) -> Iterator[str]:
        before, after, ratio = self.before.latency, self.after.latency, self.speedup
        if before is not None and after is not None and ratio is not None:
            yield (
                f"{after.median:.3g} ms against {before.median:.3g} ms a batch of {self.batch} "
                f"({ratio.median:.2f}x the speed, quartiles {ratio.low:.2f} to {ratio.high:.2f})"
            )

    def _size(self) -> str:
        return f"{_bytes(self.after.file_bytes)} against {_bytes(self.before.file_bytes)} on disk"

    def _memory(self) -> Iterator[str]:
        before, after = self.before.memory, self.after.memory
        if before is not None and after is not None:
            yield f"{_bytes(after.model)} against {_bytes(before.model)} of memory at the peak"

    def _accuracy(self) -> Iterator[str]:
        primary = self.primary
        if primary is None:
            return
        test = self.tests.get(primary.name)
        before = None if self.before.evaluation is None else self.before.evaluation.scores.get(primary.name)
        if test is not None and before is not None:
            yield (
                f"{primary.name} {_figure(primary.mean)} against {_figure(before.mean)} on {primary.samples} samples "
                f"(p = {test.p:.2g}, {test.lost} lost, {test.gained} gained)"
            )
        else:
            yield (
                f"{primary.name} {_figure(primary.mean)} [{_figure(primary.low)}, {_figure(primary.high)}] with the "
                f"original on {primary.samples} samples"
            )
        if self.agreement is not None and self.agreement is not primary:
            yield f"agreement {self.agreement.mean:.4f}"


def compare(
    before: str | Path | ir.Model,
    after: str | Path | ir.Model,
    dataset: Any = None,
    *,
    runtime: str | Mapping[str, Any] | Runtime | None = None,
    threads: int = 1,
    batch: int = 1,
    metrics: Sequence[str | Metric] | None = None,
    latency: bool = True,
    memory: bool = True,
    seconds: float = 2.0,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Measure two models against each other.

    Args:
        before: the original: a path, or a model in memory.
        after: the other one.
        dataset: a `Dataset`, or any source that `open_dataset` takes; None measures no accuracy.
        runtime: runs both; None takes the best installed.
        threads: threads of one inference.
        batch: samples in one inference of the latency, where the model allows it.
        metrics: names or instances; None chooses by outputs and labels.
        latency: False leaves the latency out.
        memory: False leaves the peak memory out.
        seconds: time to spend on the latency of each model, at most.
        limit: samples that accuracy is measured on, at most.
        progress: shows progress; None is silent.

    Raises:
        ModelError: the runtime does not accept a model, or the models do not take the same inputs.
        DataError: the data does not fit.
    """
    engine = pick_runtime(runtime)
    with _as_file(before, "before") as first, _as_file(after, "after") as second:
        inputs = ModelInputs.of(first)
        _require_same_inputs(inputs, ModelInputs.of(second))
        sessions = {"before": engine.open(first, threads=threads), "after": engine.open(second, threads=threads)}
        data = None if dataset is None else _dataset(dataset, first)
        feeds, size, notes = timing_feeds(data, inputs, sessions["before"], batch)
        times = {}
        if latency:
            twins = _twins(sessions, {"before": first, "after": second}, engine, threads)
            calls = {name: [_call(session, feeds) for session in opened] for name, opened in twins.items()}
            times = interleaved_latency(calls, seconds=seconds, progress=progress)
        scores = _scores(sessions, data, metrics, limit, progress)
        peaks, trouble = _peaks({"before": first, "after": second}, feeds, engine, threads) if memory else ({}, [])
        sides = {
            name: Side(
                file_bytes=file_bytes(path),
                weight_bytes=_weight_bytes(path),
                latency=times.get(name),
                memory=peaks.get(name),
                evaluation=scores.get(name),
            )
            for name, path in (("before", first), ("after", second))
        }
    evaluated = sides["after"].evaluation
    return Comparison(
        **sides,
        speedup=speedup(times["before"], times["after"]) if times else None,
        tests=_tests(scores),
        runtime=sessions["after"].description,
        threads=threads,
        batch=size,
        samples=evaluated.samples if evaluated else 0,
        notes=(*notes, *trouble, *(evaluated.notes if evaluated else ())),
    )


def random_feeds(inputs: ModelInputs, batch: int = 1, dynamic: int = 1) -> dict[str, Array]:
    """Input made to the shapes of a model: normal floats, integers 0 and 1; always the same.

    A dynamic first axis becomes `batch` where samples stack; other dynamic dimensions become `dynamic`.
    """
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for spec in inputs.specs or ():
        shape = [d if isinstance(d, int) else dynamic for d in spec.shape or ()]
        if shape and inputs.stacks and spec.shape and not isinstance(spec.shape[0], int):
            shape[0] = batch
        dtype = spec.dtype or np.dtype(np.float32)
        if dtype.kind in "iub":
            feeds[spec.name] = rng.integers(0, 2, shape).astype(dtype)
        elif dtype.kind == "O":
            feeds[spec.name] = np.full(shape, "text", dtype=object)
        else:
            feeds[spec.name] = np.asarray(rng.standard_normal(shape)).astype(dtype)
    return feeds


@contextmanager
def _as_file(model: str | Path | ir.Model, name: str) -> Iterator[Path]:
    if isinstance(model, str | Path):
        yield Path(model)
        return
    from pumice.model import save

    with tempfile.TemporaryDirectory(prefix="pumice-") as folder:
        path = Path(folder, f"{name}.onnx")
        save(model, path)
        yield path


def _dataset(source: Any, model: Path) -> Dataset:
    from pumice.data import open_dataset

    return open_dataset(source, model)


def _require_same_inputs(first: ModelInputs, second: ModelInputs) -> None:
    ours = {spec.name: spec.dtype for spec in first.specs or ()}
    theirs = {spec.name: spec.dtype for spec in second.specs or ()}
    if ours != theirs:
        told = " against ".join(
            ", ".join(f"{name}: {dtype}" for name, dtype in inputs.items()) or "none" for inputs in (ours, theirs)
        )
        raise ModelError(f"the models do not take the same inputs ({told}): compare models that can replace each other")


def timing_feeds(
    data: Dataset | None, inputs: ModelInputs, session: Session, batch: int
) -> tuple[dict[str, Array], int, list[str]]:
    """What the latency is taken on, how many samples that is, and what to tell about it.

    Without data it is random, with dynamic dimensions that the model accepts.

    Raises:
        DataError: the data is empty, or the model runs on no random input that was tried.
    """
    if data is not None:
        found = next(data.batches(batch_size=batch, limit=batch), None)
        if found is None:
            raise DataError(f"{data.name} holds no samples: give at least one")
        return dict(found.feeds), found.size, []
    size = batch if inputs.stacks else 1
    note = "no data was given: latency was taken on random input, and accuracy was not measured"
    failure: PumiceError | None = None
    for dynamic in _TRIED_DIMENSIONS:
        feeds = random_feeds(inputs, size, dynamic)
        try:
            session.run(feeds)
        except PumiceError as error:
            failure = failure or error
        else:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            return feeds, size, [f"{note} (shapes {shapes})"]
    raise DataError(f"the model does not run on random input ({failure}): give data")


def _twins(
    sessions: Mapping[str, Session], paths: Mapping[str, Path], runtime: Runtime, threads: int
) -> dict[str, list[Session]]:
    """Several sessions of each model, opened in turns, so that no model profits from where its memory lies."""
    opened = {name: [session] for name, session in sessions.items()}
    if sum(file_bytes(path) for path in paths.values()) <= TWINS_BELOW:
        for turn in range(TWINS - 1):
            for name in sorted(paths, reverse=turn % 2 == 0):
                opened[name].append(runtime.open(paths[name], threads=threads))
    return opened


def _call(session: Session, feeds: Mapping[str, Array]) -> Callable[[], Any]:
    return lambda: session.run(feeds)


def _scores(
    sessions: Mapping[str, Session],
    data: Dataset | None,
    metrics: Sequence[str | Metric] | None,
    limit: int | None,
    progress: Progress | None,
) -> dict[str, Evaluation]:
    if data is None:
        return {}
    return evaluate_many(sessions, data, metrics, reference="before", limit=limit, progress=progress)


def _peaks(
    paths: Mapping[str, Path], feeds: Mapping[str, Array], runtime: Runtime, threads: int
) -> tuple[dict[str, PeakMemory], list[str]]:
    """In turns, and the largest counts: a process that finds the runtime's libraries on the disk only seems small."""
    try:
        turns = [
            {name: peak_memory(path, feeds, runtime, threads=threads) for name, path in paths.items()}
            for _ in range(TURNS_OF_MEMORY)
        ]
        return {name: max((turn[name] for turn in turns), key=lambda peak: peak.model) for name in paths}, []
    except PumiceError as error:
        return {}, [str(error)]


def _weight_bytes(path: Path) -> int:
    import onnx_ir as ir

    from pumice.model import size

    return size(ir.load(path)).total


def _tests(scores: Mapping[str, Evaluation]) -> dict[str, PairedTest]:
    if not scores:
        return {}
    before, after = scores["before"].scores, scores["after"].scores
    return {name: mcnemar(before[name], after[name]) for name in after if name in before}


def _figure(score: float) -> str:
    """Four decimals, as shares have; three digits where these would show nothing."""
    return f"{score:.4f}" if score == 0 or 1e-3 <= abs(score) < 1e4 else f"{score:.3g}"


def _bytes(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} B"


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
