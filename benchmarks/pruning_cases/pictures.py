"""Fashion-MNIST networks pruned, trained on for a little, and measured: accuracy, size, and time on real runtimes.

`channels` takes half of the channels, or nine tenths of the parameters, and trains what is left; the second row of a
case is quantized to INT8 as well (its float parameters are what is left of biases and scales). Accuracy is on the
official 10,000 test pictures, with its 95% interval; latency that of one picture on one thread, against the whole
network in the same process, as a ratio. Every case is a run of its own (`runs.py`), on one core, that leaves its two
networks beside its record.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from models import Case, case, pictures
from runs import Run, carried_out
from tables import Table, measurement

import pumice
from pumice import Recipe
from pumice.measure import interleaved_latency, pick_runtime, speedup
from pumice.model import load
from pumice.prune.costs import Size, size
from pumice.prune.wiring import Wiring
from pumice.registry import registry

SECONDS = 1.5
"""For the latency of a network, on each runtime."""
RUNTIMES = ("ort", "native")
INT8 = {"use": "quantize", "quantizer": "int8", "max_drop": 0.02}


@attrs.frozen(kw_only=True)
class Task:
    """A network and what is to become of it."""

    network: str
    name: str
    steps: tuple[Mapping[str, Any], ...]

    @property
    def label(self) -> str:
        return f"{self.network}, {self.name}"


def prune(ratio: float, of: str, **knobs: Any) -> dict[str, Any]:
    return {"use": "prune", "ratio": ratio, "of": of, "scorer": "reconstruction", "recover": "least-squares", **knobs}


def train(epochs: int, **knobs: Any) -> dict[str, Any]:
    return {
        "use": "train", "epochs": epochs, "batch": 128, "lr": 3e-3, "schedule": "one-cycle", "augment": ["flip"],
        "validation": 0.02, "loss": {"name": "cross-entropy", "label_smoothing": 0.05}, **knobs,
    }  # fmt: skip


def taught(epochs: int, **knobs: Any) -> dict[str, Any]:
    """As `train`, with the network as it was before pruning as the teacher."""
    return {**train(epochs), "use": "distil", "losses": [{"name": "soft-targets", "temperature": 4.0}], **knobs}


def tasks(epochs: int) -> Iterator[Task]:
    """Half of the channels in one go; nine tenths of the parameters in two, taught by the whole network.

    `by time` ranks channels by their scores for the time they take, measured on `native`. `and a block`
    begins without the residual block that works on whole pictures: it takes a third of the time and holds a sixteenth
    of the weights. It ends with a second course, a third as long.
    """
    half = (prune(0.5, "channels"), train(epochs))
    many = {"scope": "global", "by": "score-per-param", "multiple": 4}
    tenth = (
        prune(0.65, "params", **many), taught(max(1, epochs // 6)), prune(0.715, "params", **many), taught(epochs),
    )  # fmt: skip
    short = (
        taught(max(1, epochs // 6), layers=0.67), prune(0.65, "params", **many), taught(max(1, epochs // 6)),
        prune(0.7, "params", **many), taught(epochs), taught(max(1, epochs // 3), lr=2e-3),
    )  # fmt: skip
    quick = {"scope": "global", "by": "score-per-time", "multiple": 8, "floor": 8}
    timed = (
        prune(0.65, "params", **quick), taught(max(1, epochs // 6)),
        prune(0.7, "params", **quick), taught(epochs), taught(max(1, epochs // 3), lr=2e-3),
    )  # fmt: skip
    yield Task(network="fashion_resnet", name="nine tenths of the parameters", steps=tenth)
    yield Task(network="fashion_resnet", name="nine tenths of the parameters, by time", steps=timed)
    yield Task(network="fashion_resnet", name="nine tenths of the parameters and a block", steps=short)
    for network in ("fashion_resnet", "fashion_mobile"):
        yield Task(network=network, name="half of the channels", steps=half)


@attrs.frozen(kw_only=True)
class Outcome:
    """A network on disk and how right it is."""

    path: Path
    accuracy: float
    interval: tuple[float, float]
    size: Size

    @classmethod
    def of(cls, path: Path, judged: Case) -> "Outcome":
        session = pick_runtime("ort").open(path, threads=2)
        evaluation = judged.evaluate(lambda feed: session.run(dict(feed)))
        return cls(
            path=path, accuracy=evaluation.value, interval=evaluation.interval(), size=size(Wiring.of(load(path)), {})
        )


def training_data(limit: int | None) -> dict[str, np.ndarray]:
    x, labels = pictures.fashion_training()
    return {"x": x[:limit], "labels": labels[:limit]}


def compressed(
    source: Path, steps: Sequence[Mapping[str, Any]], data: dict[str, np.ndarray], target: Path, seed: int = 0
) -> pumice.Result:
    """The result of a recipe, written to `target`."""
    few = {"x": data["x"][:256], "labels": data["labels"][:256]}
    recipe = Recipe.from_dict({"step": list(steps)})
    runtime = "native" if any(step.get("by") == "score-per-time" for step in steps) else None
    result = pumice.compress(source, data, recipe, test=few, measure=False, seed=seed, runtime=runtime, threads=1)
    pumice.save(result.model, target)
    return result


# --- channels ---------------------------------------------------------------------------------------------------------

COLUMNS = {"case": 58, "accuracy": 24, "whole": -7, "params": -7, "MACs": -6, "kB": -6, "ort": -14, "native": -14}


def channels(
    names: set[str], *, quick: bool, epochs: int, limit: int | None, records: Path | None, seconds: float | None
) -> dict[str, Any]:
    """Print the table of the cases with one of these names in theirs (none: all); the record for `write_json`."""
    runs = list(shrinking(names, 1 if quick else epochs, 4000 if quick else limit))
    with tempfile.TemporaryDirectory() as folder:
        done = carried_out(runs, records or Path(folder), seconds)
    table, cases = Table(COLUMNS), []
    for run in runs:
        for label, row in done.get(run.name, {}).items():
            table.row(_shown(label, row))
            cases += _measurements(label, row)
    return {"cases": cases}


def shrinking(names: set[str], epochs: int, limit: int | None) -> Iterator[Run]:
    """A run for every task with one of these names in its own."""
    for task in tasks(epochs):
        if not names or any(name in task.label for name in names):
            yield Run(name=task.label, function=shrunk, arguments=(task.network, task.name, task.steps, limit))


def shrunk(
    network: str, name: str, steps: Sequence[Mapping[str, Any]], limit: int | None, folder: Path
) -> dict[str, dict[str, Any]]:
    """What is known of the pruned network, and of the same in INT8, by label."""
    judged, data, label = case(network), training_data(limit), f"{network}, {name}"
    whole = Outcome.of(judged.path, judged)
    pruned, integers = folder / f"{label}.onnx", folder / f"{label}, INT8.onnx"
    compressed(judged.path, steps, data, pruned)
    compressed(pruned, (INT8,), data, integers)
    return {label: _row(whole, pruned, judged), f"{label}, INT8": _row(whole, integers, judged)}


def _row(whole: Outcome, path: Path, judged: Case) -> dict[str, Any]:
    found = Outcome.of(path, judged)
    return {
        "accuracy": found.accuracy, "interval": found.interval, "whole": whole.accuracy,
        "params": found.size.params / whole.size.params, "macs": found.size.macs / whole.size.macs,
        "bytes": path.stat().st_size, "whole bytes": whole.path.stat().st_size,
        "times faster": {name: _ratio(judged, whole.path, path, name) for name in RUNTIMES},
    }  # fmt: skip


def _ratio(judged: Case, whole: Path, pruned: Path, name: str) -> tuple[float, float] | None:
    """How many times faster, and the half width of the quartiles; None where the runtime is not installed."""
    if name not in registry().strategies("runtime"):
        return None
    feed, runtime = dict(judged.feed), pick_runtime(name)
    sessions = {key: runtime.open(path, threads=1) for key, path in (("whole", whole), ("pruned", pruned))}
    calls = {key: (lambda session=session: session.run(feed)) for key, session in sessions.items()}
    found = interleaved_latency(calls, seconds=SECONDS)
    ratio = speedup(found["whole"], found["pruned"])
    return ratio.median, (ratio.high - ratio.low) / 2


def _shown(label: str, row: Mapping[str, Any]) -> list[str]:
    low, high = row["interval"]
    times = [f"{r[0]:.2f}x +-{r[1]:.2f}" if r is not None else "not installed" for r in row["times faster"].values()]
    return [
        label, f"{row['accuracy']:.4f} [{low:.4f}, {high:.4f}]", f"{row['whole']:.4f}", f"{row['params']:.1%}",
        f"{row['macs']:.1%}", f"{row['bytes'] / 1e3:.0f}", *times,
    ]  # fmt: skip


def _measurements(label: str, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    half = (row["interval"][1] - row["interval"][0]) / 2
    peers = {"whole": row["whole"]}
    yield measurement(label, "accuracy", row["accuracy"], peers, spread=half, higher_is_better=True)
    sizes = row["bytes"], {"whole": float(row["whole bytes"])}
    yield measurement(label, "file bytes", *sizes, spread=0.0, higher_is_better=False)
    yield measurement(label, "MACs, share", row["macs"], {"whole": 1.0}, spread=0.0, higher_is_better=False)
    for name, ratio in row["times faster"].items():
        if ratio is not None:
            yield measurement(label, f"times faster on {name}", ratio[0], {}, spread=ratio[1], higher_is_better=True)
