"""Training: the time of a step against PyTorch, whole-model gradients against PyTorch's, memory with checkpointing, and
networks trained from scratch on Fashion-MNIST.

    python benchmarks/bench_training.py [--quick] [--json FILE] [--only step,gradients,memory,scratch] [--threads 2]

`step` is one update (forward, loss, backward, AdamW) on the same weights and batch, both sides taking turns, each in a
process of its own; `ratio` above 1 is faster than PyTorch. `float64` is the largest difference between the two sides'
gradients in double precision, over all parameters, relative to the largest gradient of the parameter; `gradients` that
of each side's float32 from PyTorch's float64 (a unit within rounding of a ReLU's kink has its gradient or has it not,
on either side). `memory` trains one step of a deep network with its residuals cut into segments: peak memory of a
process, and time. `scratch` is the accuracy on the official test set.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import fashion
import numpy as np
import onnx
import onnx.numpy_helper
from kernel_peers import Peer, environment
from models import networks
from peers.environment import PeerError
from peers.isolation import Failed, isolated
from tables import Table, measurement, write_json

from pumice.data import Batch, open_dataset
from pumice.model import load, save
from pumice.registry import registry
from pumice.steps import Train
from pumice.strategy import Loss
from pumice.train import Parameters, Trainer
from pumice.train.application import trainable_plan
from pumice.train.feeding import Feeder, Portion

SETTINGS = Train(loss=None, lr=1e-4, weight_decay=1e-2, epochs=1_000_000, schedule="constant")


@attrs.frozen(kw_only=True)
class Shape:
    """A network, and a batch for it."""

    name: str
    build: Callable[[Path], Path]
    x: tuple[int, ...]
    words: int = 0
    """Above zero: the input is word numbers below this."""
    classes: int = 10
    quick: bool = True

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        draws = np.random.default_rng(1)
        x = draws.integers(0, self.words, self.x) if self.words else draws.standard_normal(self.x).astype(np.float32)
        return x, draws.integers(0, self.classes, self.x[0])


SHAPES = (
    Shape(name="resnet, 64 pictures of 28 x 28", build=networks.resnet, x=(64, 1, 28, 28)),
    Shape(name="50 layers, 32 pictures of 28 x 28", build=networks.deep, x=(32, 1, 28, 28)),
    Shape(name="vit, 64 pictures of 28 x 28", build=networks.vit, x=(64, 1, 28, 28)),
    Shape(name="lstm, 64 pictures of 28 x 28", build=networks.lstm, x=(64, 1, 28, 28)),
    Shape(
        name="ResNet-50, 4 pictures of 64 x 64", build=networks.resnet50, x=(4, 3, 64, 64), classes=1000, quick=False
    ),
    Shape(name="BERT-base, 2 texts of 64", build=networks.bert, x=(2, 64), words=1000, classes=2, quick=False),
)


def trainer_of(path: Path, **settings: Any) -> Trainer:
    """A trainer of a file for one batch at a time, given by hand."""
    plan = trainable_plan(load(path))
    loss = registry().make(Loss, "cross-entropy")
    nothing = open_dataset({"x": np.zeros((2, 1), np.float32)})
    chosen = attrs.evolve(SETTINGS, **settings)
    return Trainer(plan, Parameters.of(plan), loss.value_and_grad, Feeder(nothing, 1), chosen)


def portions(x: np.ndarray, labels: np.ndarray) -> list[Portion]:
    return [Portion(Batch(feeds={"x": x}, labels=labels, size=len(x)))]


# --- step and gradients -----------------------------------------------------------------------------------------------


def against_pytorch(shape: Shape, folder: Path, threads: int, seconds: float) -> Iterator[dict[str, Any]]:
    """The two measurements of one network."""
    path = shape.build(folder / "model.onnx")
    x, labels = shape.batch()
    twice = doubled(path), x if shape.words else x.astype(np.float64), labels
    with pytorch(*twice, folder, threads) as (_, exact):
        _, found = trainer_of(twice[0]).gradients(portions(*twice[1:]))
        yield measurement(shape.name, "float64", difference(found, exact), {}, spread=0.0, higher_is_better=False)
    ours, given = trainer_of(path), portions(x, labels)
    _, found = ours.gradients(given)
    with pytorch(path, x, labels, folder, threads) as (peer, theirs):
        off, peers = difference(found, exact), {"torch": difference(theirs, exact)}
        yield measurement(shape.name, "gradients", off, peers, spread=0.0, higher_is_better=False)
        ours.step(given)
        times: dict[str, list[float]] = {"ours": [], "torch": []}
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(times["ours"]) < 3:
            began = time.perf_counter()
            ours.step(given)
            times["ours"].append(time.perf_counter() - began)
            times["torch"].append(peer.burst(1))
        mine, other = (np.quantile(times[side], [0.25, 0.5, 0.75]) for side in ("ours", "torch"))
        spread = float((mine[2] - mine[0]) / 2 / mine[1])
        peers = {"torch": 1e3 * float(other[1])}
        yield measurement(shape.name, "step", 1e3 * float(mine[1]), peers, spread=spread, higher_is_better=False)


@contextmanager
def pytorch(
    path: Path, x: np.ndarray, labels: np.ndarray, folder: Path, threads: int
) -> Iterator[tuple[Peer, dict[str, np.ndarray]]]:
    """The peer, ready to train a file on a batch, and its gradients before the first step."""
    names = {"model": str(path), "batch": str(folder / "batch.npz"), "gradients": str(folder / "gradients.npz")}
    np.savez(names["batch"], x=x, labels=labels)
    peer = Peer("torch", environment(), threads)
    try:
        peer.build("training", 1, names)
        with np.load(names["gradients"]) as held:
            theirs = {name: held[name] for name in held.files}
        yield peer, theirs
    finally:
        peer.close()


def doubled(path: Path) -> Path:
    """The same network in double precision, beside the file."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float64), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    del model.graph.value_info[:]
    target = path.with_stem(f"{path.stem}_double")
    onnx.save(model, target)
    return target


def difference(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> float:
    """The largest over all parameters, relative to the parameter's largest gradient.

    A gradient that is zero but for rounding (that of a key's bias, before a softmax) is held to a thousandth of the
    largest of all.
    """
    assert set(ours) <= set(theirs), "the two sides train different parameters"
    floor = 1e-3 * max(float(np.abs(g).max()) for g in theirs.values())
    return max(float(np.abs(g - theirs[n]).max() / max(np.abs(theirs[n]).max(), floor)) for n, g in ours.items())


# --- memory -----------------------------------------------------------------------------------------------------------


def one_step(path: Path, x: np.ndarray, labels: np.ndarray, segments: int, budget: float) -> tuple[float, float, str]:
    """Seconds of a step, bytes of its residuals at their peak, and a digest of its gradients."""
    import hashlib

    from pumice.autograd import Profile, Tape

    run = trainer_of(path)
    feeds = {"x": x, **run.parameters.values}
    options: dict[str, Any] = {"budget": round(budget * 1e6)} if budget else {"segments": segments}
    tape = Tape(run.plan, run.parameters.values, training=True, **options)
    peak = Profile.of(tape, feeds)
    loss = registry().make(Loss, "cross-entropy")
    times = []
    for _ in range(2):
        began = time.perf_counter()
        outputs, pull = tape.forward(feeds)
        grads = pull(loss.value_and_grad(outputs, Batch(feeds={"x": x}, labels=labels, size=len(x)))[1])
        times.append(time.perf_counter() - began)
    digest = hashlib.sha256(b"".join(grads[name].tobytes() for name in sorted(grads))).hexdigest()
    return min(times), peak.peak(tape.cuts(feeds)) / 1e6, digest


SEGMENTS = (1, 2, 3, 4, 6, 8, 12, 16)


def memory(folder: Path, figures: Path | None, *, quick: bool) -> Iterator[dict[str, Any]]:
    """Residuals and time of a step against the number of segments."""
    draws = np.random.default_rng(0)
    count, texts = (64, 1) if quick else (256, 4)
    pictures = draws.standard_normal((count, 1, 28, 28)).astype(np.float32), draws.integers(0, 10, count)
    words = draws.integers(0, 1000, (texts, 128)), draws.integers(0, 2, texts)
    large = networks.bert(folder / "bert.onnx", **(SMALL if quick else LARGE))
    for name, path, batch in (
        (f"50 layers, {count} pictures", networks.deep(folder / "deep.onnx"), pictures),
        (f"BERT-{'small' if quick else 'large'}, {texts} x 128 words", large, words),
    ):
        found = list(against_segments(name, path, *batch))
        if figures:
            draw(found, name, figures / f"checkpointing_{path.stem}.svg")
        yield from found


def against_segments(name: str, path: Path, x: np.ndarray, labels: np.ndarray) -> Iterator[dict[str, Any]]:
    whole, digests = None, set()
    for segments in SEGMENTS:
        finished = isolated(one_step, path, x, labels, segments, 0.0, gigabytes=64)
        seconds, residuals, digest = finished.value
        digests.add(digest)
        whole = whole or (seconds, residuals)
        yield {
            "case": f"{name}, {segments} segments",
            "metric": "memory",
            "ours": residuals,
            "peers": {"1 segment": whole[1]},
            "ratio": whole[1] / residuals,
            "spread": 0.0,
            "segments": segments,
            "seconds": seconds,
            "time against 1 segment": seconds / whole[0],
            "peak MB of the process": finished.peak_megabytes,
        }
    assert len(digests) == 1, "checkpointing changed the gradients"


def draw(found: Sequence[Mapping[str, Any]], name: str, target: Path) -> None:
    """Both curves as a picture."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "pumice"
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    segments = [row["segments"] for row in found]
    axes.plot(segments, [1 / row["ratio"] for row in found], marker="o", label="memory of the residuals")
    axes.plot(segments, [row["time against 1 segment"] for row in found], marker="s", label="time of a step")
    axes.set(xlabel="segments", ylabel="relative to one segment", title=name, ylim=(0, None), xticks=segments)
    axes.legend(frameon=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None})
    plt.close(figure)


SMALL = {"width": 256, "layers": 12, "heads": 8}
LARGE = {"width": 1024, "layers": 24, "heads": 16}


def out_of_memory(folder: Path, *, quick: bool) -> Iterator[dict[str, Any]]:
    """A step that a limit on the process makes impossible, and that a budget makes possible again."""
    shape, texts, limit, budget = (SMALL, 8, 0.9, 150.0) if quick else (LARGE, 8, 7.0, 900.0)
    path = networks.bert(folder / "bert.onnx", **shape)
    draws = np.random.default_rng(0)
    x, labels = draws.integers(0, 1000, (texts, 128)), draws.integers(0, 2, texts)
    for name, allowed, gigabytes in (
        ("everything kept, no limit", 0.0, 64.0),
        (f"everything kept, limit {limit:g} GB", 0.0, limit),
        (f"budget {budget:.0f} MB, limit {limit:g} GB", budget, limit),
    ):
        try:
            finished = isolated(one_step, path, x, labels, 1, allowed, gigabytes=gigabytes)
            seconds, held, _ = finished.value
            answer = f"{seconds:.1f} s, {finished.peak_megabytes:.0f} MB in all"
        except Failed as failure:
            answer, held = str(failure), float("nan")
        yield {
            "case": f"BERT-{'small' if quick else 'large'}, {texts} x 128, {name}",
            "metric": "out of memory", "ours": held, "peers": {}, "ratio": None, "spread": 0.0, "answer": answer,
        }  # fmt: skip


# --- from scratch -----------------------------------------------------------------------------------------------------

RECIPES: dict[str, tuple[Callable[[Path], Path], dict[str, Any], float]] = {
    "resnet": (networks.resnet, {"epochs": 5, "batch": 128, "lr": 4e-3, "augment": ("flip",)}, 0.92),
    "vit": (networks.vit, {"epochs": 4, "batch": 128, "lr": 2e-3, "augment": ("flip",)}, 0.87),
    "lstm": (networks.lstm, {"epochs": 6, "batch": 128, "lr": 4e-3, "clip": 1.0}, 0.88),
}
"""Network, knobs of the training, and the accuracy that it should reach."""


def from_scratch(name: str, folder: Path, keep: Path | None, *, quick: bool) -> Iterator[dict[str, Any]]:
    build, knobs, target = RECIPES[name]
    if quick:
        knobs = {**knobs, "epochs": 1}
    trained = fashion.train(build(folder / f"{name}.onnx"), knobs, 6000 if quick else None)
    if keep:
        save(trained.model, keep / f"fashion_{name}.onnx")
    reached = fashion.accuracy(trained.model, folder)
    yield {
        **measurement(name, "scratch", reached, {}, spread=0.0, higher_is_better=True),
        "target": None if quick else target,
        "minutes": trained.minutes,
        "epochs": knobs["epochs"],
    }


# --- the script -------------------------------------------------------------------------------------------------------

PARTS = ("step", "gradients", "memory", "scratch")
PARTS_OF = {"float64": "gradients"}
"""Of metrics that are not called like their part."""


def rows(wanted: set[str], options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    quick = options.quick
    if wanted & {"step", "gradients"}:
        for shape in SHAPES:
            if shape.quick or not quick:
                found = against_pytorch(shape, folder, options.threads, 2.0 if quick else 10.0)
                yield from (row for row in found if PARTS_OF.get(row["metric"], row["metric"]) in wanted)
    if "memory" in wanted:
        yield from memory(folder, options.figures, quick=quick)
        yield from out_of_memory(folder, quick=quick)
    if "scratch" in wanted:
        for name in options.networks.split(","):
            yield from from_scratch(name, folder, options.keep, quick=quick)


def shown(row: dict[str, Any]) -> list[str]:
    peers = ", ".join(f"{name} {value:.4g}" for name, value in row["peers"].items())
    extra = [f"{key} {value:.3g}" for key in ("time against 1 segment", "minutes", "target") if (value := row.get(key))]
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
    return [row["case"], row["metric"], f"{row['ours']:.4g}", peers, ratio, row.get("answer", ", ".join(extra))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small cases, a minute or two")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--networks", default=",".join(RECIPES), help="that `scratch` trains, separated by commas")
    parser.add_argument("--keep", type=Path, help="folder for the networks that `scratch` trained")
    parser.add_argument("--figures", type=Path, help="folder for the curves of `memory`")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch; ours takes what the process may use")
    options = parser.parse_args()
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        table = Table({"case": 44, "metric": 13, "ours": -9, "peers": 18, "ratio": -6, "also": 34})
        try:
            for row in rows({*options.only.split(",")}, options, Path(folder)):
                table.row(shown(row))
                cases.append(row)
        except PeerError as error:
            print(error, file=sys.stderr)
            return 1
    if options.json:
        write_json(options.json, {"cases": cases})
    return 0


if __name__ == "__main__":
    sys.exit(main())
