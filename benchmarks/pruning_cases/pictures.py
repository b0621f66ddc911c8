"""Fashion-MNIST networks pruned, trained on for a little, and measured: accuracy, size, and time on real runtimes.

`channels` takes half of the channels, or nine tenths of the parameters, and trains what is left; the second row of a
case is quantized to INT8 as well (its float parameters are what is left of biases and scales). Accuracy is on the
official 10,000 test pictures, with its 95% interval; latency that of one picture on one thread, against the whole
network in the same process, as a ratio.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from models import Case, case, pictures
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


def taught(epochs: int) -> dict[str, Any]:
    """As `train`, with the network as it was before pruning as the teacher."""
    return {**train(epochs), "use": "distil", "losses": [{"name": "soft-targets", "temperature": 4.0}]}


def tasks(epochs: int) -> Iterator[Task]:
    """Half of the channels in one go; nine tenths of the parameters in two, taught by the whole network."""
    half = (prune(0.5, "channels"), train(epochs))
    tenth = (
        prune(0.65, "params", scope="global", by="score-per-param"), taught(max(1, epochs // 3)),
        prune(0.72, "params", scope="global", by="score-per-param"), taught(2 * epochs),
    )  # fmt: skip
    for network in ("fashion_resnet", "fashion_mobile"):
        yield Task(network=network, name="half of the channels", steps=half)
    yield Task(network="fashion_resnet", name="nine tenths of the parameters", steps=tenth)


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
    result = pumice.compress(source, data, recipe, test=few, measure=False, seed=seed)
    pumice.save(result.model, target)
    return result


# --- channels ---------------------------------------------------------------------------------------------------------

COLUMNS = {"case": 46, "accuracy": 24, "whole": -7, "params": -7, "MACs": -6, "kB": -6, "ort": -14, "native": -14}


def channels(names: set[str], *, quick: bool, epochs: int, limit: int | None) -> dict[str, Any]:
    """Print the table of the cases with one of these names in theirs (none: all); the record for `write_json`."""
    table, cases = Table(COLUMNS), []
    data = training_data(4000 if quick else limit)
    with tempfile.TemporaryDirectory() as folder:
        for task in tasks(1 if quick else epochs):
            if names and not any(name in task.label for name in names):
                continue
            judged = case(task.network)
            whole = Outcome.of(judged.path, judged)
            pruned, integers = Path(folder, "pruned.onnx"), Path(folder, "integers.onnx")
            compressed(judged.path, task.steps, data, pruned)
            cases += _row(table, task.label, whole, pruned, judged)
            compressed(pruned, (INT8,), data, integers)
            cases += _row(table, f"{task.label}, INT8", whole, integers, judged)
    return {"cases": cases}


def _row(table: Table, label: str, whole: Outcome, path: Path, judged: Case) -> Iterator[dict[str, Any]]:
    found = Outcome.of(path, judged)
    ratios = {name: _ratio(judged, whole.path, path, name) for name in RUNTIMES}
    table.row(_shown(label, found, whole, ratios))
    yield from _measurements(label, found, whole, ratios)


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


def _shown(label: str, found: Outcome, whole: Outcome, ratios: Mapping[str, Any]) -> list[str]:
    low, high = found.interval
    times = [f"{r[0]:.2f}x +-{r[1]:.2f}" if r is not None else "not installed" for r in ratios.values()]
    sizes = [f"{a / b:.1%}" for a, b in ((found.size.params, whole.size.params), (found.size.macs, whole.size.macs))]
    return [
        label, f"{found.accuracy:.4f} [{low:.4f}, {high:.4f}]", f"{whole.accuracy:.4f}", *sizes,
        f"{found.path.stat().st_size / 1e3:.0f}", *times,
    ]  # fmt: skip


def _measurements(
    label: str, found: Outcome, whole: Outcome, ratios: Mapping[str, tuple[float, float] | None]
) -> Iterator[dict[str, Any]]:
    half = (found.interval[1] - found.interval[0]) / 2
    peers = {"whole": whole.accuracy}
    yield measurement(label, "accuracy", found.accuracy, peers, spread=half, higher_is_better=True)
    sizes = found.path.stat().st_size, {"whole": float(whole.path.stat().st_size)}
    yield measurement(label, "file bytes", *sizes, spread=0.0, higher_is_better=False)
    yield measurement(label, "MACs", found.size.macs, {"whole": whole.size.macs}, spread=0.0, higher_is_better=False)
    for name, ratio in ratios.items():
        if ratio is not None:
            yield measurement(label, f"times faster on {name}", ratio[0], {}, spread=ratio[1], higher_is_better=True)
