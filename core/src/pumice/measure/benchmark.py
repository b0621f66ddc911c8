"""One model on several runtimes: latency interleaved, memory, and where the time goes.

Every setting (runtime, threads, batch) is a session of its own in one process. The settings of one batch size take
turns, so that a drift of the machine meets all alike. A runtime that refuses the model has a line with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from numpy.typing import NDArray

from pumice.data import ModelInputs
from pumice.errors import PumiceError
from pumice.measure.comparison import timing_feeds
from pumice.measure.latency import Latency, interleaved_latency
from pumice.measure.memory import PeakMemory, peak_memory
from pumice.progress import Progress
from pumice.strategy import Runtime, Session

if TYPE_CHECKING:
    from pumice.data import Dataset

Array = NDArray[Any]
TOP = 10


@attrs.frozen(kw_only=True)
class Layer:
    """What a runtime spends on one node."""

    node: str
    op: str
    microseconds: float
    share: float


@attrs.frozen(kw_only=True)
class Line:
    """One setting: what was measured, or why nothing was."""

    runtime: str
    threads: int
    batch: int
    latency: Latency | None = None
    memory: PeakMemory | None = None
    layers: tuple[Layer, ...] = ()
    """The ten nodes that take longest, for runtimes that tell."""
    description: str = ""
    failure: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "runtime": self.runtime,
            "threads": self.threads,
            "batch": self.batch,
            "latency": None if self.latency is None else self.latency.to_json(),
            "memory": None if self.memory is None else self.memory.to_json(),
            "layers": [attrs.asdict(layer) for layer in self.layers],
            "description": self.description,
            "failure": self.failure,
        }


def benchmark(
    model: Path,
    runtimes: Sequence[Runtime],
    *,
    threads: Sequence[int] = (1,),
    batches: Sequence[int] = (1,),
    data: Dataset | None = None,
    seconds: float = 2.0,
    memory: bool = True,
    progress: Progress | None = None,
) -> tuple[list[Line], list[str]]:
    """Measure a model file on every runtime with every number of threads and batch size.

    Args:
        model: the file.
        runtimes: configured; the first is what the others are compared with.
        threads: of one inference.
        batches: samples of one inference.
        data: what to feed; None makes random input.
        seconds: time to spend at most on each setting.
        memory: also measure peak memory, in processes of their own.
        progress: shows progress; None is silent.

    Returns:
        A line for every setting, and what the reader should know.

    Raises:
        DataError: the model runs on no input that was tried.
    """
    inputs = ModelInputs.of(model)
    lines: list[Line] = []
    notes: list[str] = []
    for batch in batches:
        settings = [(runtime, count) for runtime in runtimes for count in threads]
        opened = [_open(model, runtime, count) for runtime, count in settings]
        first = next((session for session in opened if not isinstance(session, str)), None)
        if first is None:
            feeds, size = dict[str, Array](), batch
        else:
            feeds, size, told = timing_feeds(data, inputs, first, batch)
            notes += told
        lines += _measured(model, settings, opened, feeds, size, seconds, memory, progress)
    return lines, list(dict.fromkeys(notes))


def _open(model: Path, runtime: Runtime, threads: int) -> Session | str:
    """The session, or the reason why there is none."""
    try:
        return runtime.open(model, threads=threads)
    except PumiceError as error:
        return str(error)


def _measured(
    model: Path,
    settings: Sequence[tuple[Runtime, int]],
    opened: Sequence[Session | str],
    feeds: Mapping[str, Array],
    batch: int,
    seconds: float,
    memory: bool,
    progress: Progress | None,
) -> list[Line]:
    failures = [session if isinstance(session, str) else _failure(session, feeds) for session in opened]
    calls = {
        str(i): (lambda session=session: session.run(feeds))
        for i, session in enumerate(opened)
        if not isinstance(session, str) and not failures[i]
    }
    found = interleaved_latency(calls, seconds=seconds, progress=progress) if calls else {}
    lines = []
    for i, ((runtime, count), session) in enumerate(zip(settings, opened, strict=True)):
        line = Line(runtime=runtime.name, threads=count, batch=batch, failure=failures[i])
        if not isinstance(session, str) and not failures[i]:
            line = attrs.evolve(
                line,
                latency=found[str(i)],
                memory=peak_memory(model, feeds, runtime, threads=count) if memory else None,
                layers=_layers(model, runtime, feeds, count),
                description=session.description,
            )
        lines.append(line)
    return lines


def _failure(session: Session, feeds: Mapping[str, Array]) -> str:
    try:
        session.run(feeds)
    except PumiceError as error:
        return str(error)
    return ""


def _layers(model: Path, runtime: Runtime, feeds: Mapping[str, Array], threads: int) -> tuple[Layer, ...]:
    profile = getattr(runtime, "profile", None)
    if profile is None:
        return ()
    times = profile(model, feeds, threads=threads)
    total = sum(time for *_, time in times) or 1.0
    slowest = sorted(times, key=lambda entry: -entry[2])[:TOP]
    return tuple(Layer(node=node, op=op, microseconds=time, share=time / total) for node, op, time in slowest)
